"""The models of ``xtoken_tiny``, by Megatron's names, and its runs; for NeMo 2 and Megatron-Bridge alike."""

__all__ = ["CE_ONLY", "STEPS", "STUDENT", "STUDENT_LENGTH", "TAUGHT", "TEACHER", "TEACHER_LENGTH", "TEACHER_STEPS"]

#: The runs of the student, for tables and progress.
CE_ONLY, TAUGHT = "cross-entropy only", "with the teacher"

STUDENT = {"num_layers": 2, "hidden_size": 96, "ffn_hidden_size": 256, "num_attention_heads": 2}
TEACHER = {"num_layers": 3, "hidden_size": 128, "ffn_hidden_size": 384, "num_attention_heads": 2}

#: Training steps of the student, and of the teacher.
STEPS, TEACHER_STEPS = 120, 400
#: Tokens of a sequence.
STUDENT_LENGTH, TEACHER_LENGTH = 128, 192
