"""python docs/transformers_trainer.py STUDENT TEACHER TEXT_FILE OUT: distillation in transformers' own Trainer."""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from nemo_xtoken import CrossTokenizerLoss, TextBatch

arguments = TrainingArguments(sys.argv[4], max_steps=10, logging_steps=1, remove_unused_columns=False, report_to="none")
student = AutoModelForCausalLM.from_pretrained(sys.argv[1])
teacher = AutoModelForCausalLM.from_pretrained(sys.argv[2], device_map={"": arguments.device}).requires_grad_(False)
loss = CrossTokenizerLoss(*sys.argv[1:3])
states = {"output_hidden_states": True, "logits_to_keep": 1}  # hidden states, and next to no logits


class Distillation(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = TextBatch(**inputs)
        learned = model(batch.student_tokens, **states).hidden_states[-1]
        taught = teacher(batch.teacher_tokens, **states).hidden_states[-1]
        weights = [m.get_output_embeddings().weight for m in (student, teacher)]
        return loss(batch, learned, taught, *weights)


texts = Path(sys.argv[3]).read_text().split("\n\n")
trainer = Distillation(student, arguments, lambda rows: vars(loss.batch(rows)), texts)
trainer.train()
if trainer.is_world_process_zero():
    student.save_pretrained(sys.argv[4])
