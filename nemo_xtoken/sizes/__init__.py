"""What a run's sizes come to, on paper: whether they divide, what they cost in memory, FLOPs and bytes.  No torch."""
