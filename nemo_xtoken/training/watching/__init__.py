"""What a training does with held-out text beside measuring it: it stops on it, and lets the student continue it."""
