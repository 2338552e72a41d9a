"""A tokenizer of one's own text: byte pairs on bytes, as GPT-2's, by the `tokenizers` library."""

from collections.abc import Iterable

EOS, PAD = "<|endoftext|>", "<|pad|>"
BYTES = 256 + 2  # the smallest vocabulary: every byte, EOS and padding


def train_tokenizer(texts: Iterable[str], vocab_size: int):
    """At most `vocab_size` tokens, fewer where the text gives no more; it puts nothing before or after a text.

    Any text can be written in it, and comes back as it was. Source: Sennrich et al. 2016; Radford et al. 2019, 2.2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all bytes, also those that this text lacks
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((part for text in texts for part in text.split(EOS)), trainer)
    names = {"eos_token": EOS, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)


def bytes_in(tokenizer, ids: Iterable[int]) -> int:
    """How many bytes of text these tokens stand for: a character of a token's name is one; special tokens have none."""
    tokens = tokenizer.convert_ids_to_tokens([i for i in ids if i not in tokenizer.all_special_ids])
    return sum(map(len, tokens))
