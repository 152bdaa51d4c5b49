"""W, the sparse projection matrix from the student's to the teacher's vocabulary."""
