"""The pocket GPT-2's tokenizer: one token per word, digit or mark; decoding restores the exact text."""

from string import Formatter

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raysae.pocket.problems import ASK, ITEMS, NAMES, SENTENCES, START

END = "<|end|>"
UNKNOWN = "<|unknown|>"
PIECES = r" ?[A-Za-z]+|[0-9]|####|[^A-Za-z0-9]"


def build_tokenizer(context_length: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer. Its vocabulary has every word that the problem generator can write.

    A word includes the space before it, as in GPT-2; each digit is a token. ``context_length``, in
    tokens, is its ``model_max_length``.
    """
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def _vocabulary() -> dict[str, int]:
    templates = [*START, *ASK, *(text for texts in SENTENCES.values() for text in texts)]
    literal = " ".join(text for template in templates for text, *_ in Formatter().parse(template))
    words = {word.strip(".?,") for word in literal.split()} - {""}
    bare = sorted({*words, *NAMES, *ITEMS})
    marks = [*"0123456789", *" \n.?,+-*=", "####"]
    tokens = [END, UNKNOWN, *marks, *bare, *(f" {word}" for word in bare)]
    return {token: number for number, token in enumerate(tokens)}
