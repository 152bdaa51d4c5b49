"""Distillation across tokenizers in plain PyTorch, without NeMo: alignment, W, a loss and its gradient.

python docs/plain_torch.py                              two tiny random models, made on the spot
python docs/plain_torch.py STUDENT TEACHER TEXT_FILE    models in Hugging Face's format (folders or hub names)
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nemo_xtoken.objective import PairLoss, TextBatch
from nemo_xtoken.projection import build_projection
from nemo_xtoken.vocab import load_vocabulary


def tiny(texts, hidden, single_digits):
    """A random Llama, and a tokenizer of the texts that reads a numeral as one token, or digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Digits(individual_digits=single_digits), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet))
    size = {"hidden_size": hidden, "intermediate_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **size)), load_vocabulary(tokenizer)


torch.manual_seed(0)
if len(sys.argv) == 4:
    texts = Path(sys.argv[3]).read_text().split("\n\n")[:16]
    pairs = [(AutoModelForCausalLM.from_pretrained(name), load_vocabulary(name)) for name in sys.argv[1:3]]
else:
    texts = [f"In {year} it cost {7 * year} euros, in {year + 1} it cost {8 * year}." for year in range(190, 222)]
    pairs = [tiny(texts, 64, single_digits=False), tiny(texts, 96, single_digits=True)]
(student, s_vocabulary), (teacher, t_vocabulary) = pairs
batch = TextBatch.of(texts, s_vocabulary, t_vocabulary)  # ids and labels of both sides, and the chunks between them
w = build_projection(s_vocabulary, t_vocabulary)  # to which teacher tokens a student token's probability goes
s_weight, t_weight = (model.get_output_embeddings().weight for model in (student, teacher))
loss = PairLoss(s_vocabulary, t_vocabulary, s_weight, t_weight, "p_kl", matrix=w)
with torch.no_grad():
    t_hidden = teacher.base_model(batch.teacher_tokens).last_hidden_state  # [b, T_T, H_T]: no logits are made

optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
for step in range(20):
    s_hidden = student.base_model(batch.student_tokens).last_hidden_state  # [b, T_S, H_S]
    terms = loss(batch, s_hidden, s_weight, t_hidden, scale=10)
    terms.objective.backward()
    optimizer.step()
    optimizer.zero_grad()
    ce, p_kl = (float(term.total / term.count) for term in (terms.ce, *terms.kd))
    print(f"step {step}: cross-entropy {ce:.3f} nats a token, P-KL {p_kl:.4f} nats a chunk")
