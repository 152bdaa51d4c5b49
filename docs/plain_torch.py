"""Distillation across tokenizers in plain PyTorch, without NeMo.

python docs/plain_torch.py                              two tiny random models, made on the spot
python docs/plain_torch.py STUDENT TEACHER TEXT_FILE    models in Hugging Face's format (folders or hub names)
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nemo_xtoken import CrossTokenizerLoss


def tiny(texts, hidden, single_digits):
    """A random Llama, and a tokenizer of the texts that reads a numeral as one token, or digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Digits(individual_digits=single_digits), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet))
    size = {"hidden_size": hidden, "intermediate_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **size)), tokenizer


torch.manual_seed(0)
if len(sys.argv) == 4:
    texts = Path(sys.argv[3]).read_text().split("\n\n")[:16]
    pairs = [(AutoModelForCausalLM.from_pretrained(name), name) for name in sys.argv[1:3]]
else:
    texts = [f"In {year} it cost {7 * year} euros, in {year + 1} it cost {8 * year}." for year in range(190, 222)]
    pairs = [tiny(texts, 64, single_digits=False), tiny(texts, 96, single_digits=True)]
(student, student_tokenizer), (teacher, teacher_tokenizer) = pairs

loss = CrossTokenizerLoss(student_tokenizer, teacher_tokenizer, loss="prefix_kl")
batch = loss.batch(texts)  # ids and labels of both sides, and the chunks between them
weights = [model.get_output_embeddings().weight for model in (student, teacher)]
with torch.no_grad():
    t_hidden = teacher.base_model(batch.teacher_tokens).last_hidden_state  # [b, T_T, H_T]: no logits are made

optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
for step in range(20):
    s_hidden = student.base_model(batch.student_tokens).last_hidden_state  # [b, T_S, H_S]
    loss(batch, s_hidden, t_hidden, *weights).backward()
    optimizer.step()
    optimizer.zero_grad()
    ce, kd = loss.means
    print(f"step {step}: cross-entropy {ce:.3f} nats a token, distillation {kd:.4f} nats a chunk")
