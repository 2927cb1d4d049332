"""A tiny random Mixtral of Hugging Face and a tokenizer of bytes, into the working folder."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2}

torch.manual_seed(0)
model = MixtralForCausalLM(MixtralConfig(vocab_size=256, **SIZES)).eval()
for name, weights in model.named_parameters():  # drawn wide, so that tokens are routed differently
    weights.data.normal_(0, 0.3 if "gate.weight" in name else 0.1)
model.save_pretrained(".")
words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(".")
