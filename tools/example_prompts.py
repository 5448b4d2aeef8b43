"""Prompts of the example text encoder, with a digit and without.

It is trained on the templates of `SEEN`. The templates of `HELD_OUT`, and most of their words, show whether it reads
prompts or has memorised them.
"""

from __future__ import annotations

from random import Random

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOTHING = 10
"""Class of a prompt without a digit: the row of the class table for "no class"."""

SEEN = (
    "{}",
    "a {}",
    "the {}",
    "digit {}",
    "number {}",
    "the digit {}",
    "the number {}",
    "a handwritten {}",
    "a handwritten digit {}",
    "the handwritten number {}, black and white",
    "{}, ink on paper",
    "{} written by hand",
    "a {} written in ink",
    "a picture of a {}",
    "a drawing of the digit {}",
    "a photo of the number {} on paper",
    "please draw a {}",
    "write the number {} for me",
    "a neat {}, thin lines",
    "a scribbled {} on white paper",
    "{} in chalk on a blackboard",
    "someone wrote {} with a pen",
)
HELD_OUT = (
    "show me {}",
    "a scan of somebody's {}",
    "the figure {} in pencil",
    "my grandmother's {}, faded",
    "calligraphy of the numeral {}, brush strokes",
    "a lonely {} in the middle of a page",
    "I would like to see what {} looks like",
    "{}? yes, {}!",
)
PLAIN = (
    "a an the of in on with and by for at from my your this that some very soft bold thin thick old new "
    "small large bright dark red blue green grey black white wooden paper ink pen chalk brush pencil line "
    "lines sketch drawing photo picture portrait painting page book letter word cat dog tree house river "
    "mountain street lamp window bicycle boat bird flower table chair night morning light shadow rain "
    "snow sun moon star blurry sharp cropped low high quality detailed simple elegant messy clean nothing "
    "empty blank noise text watermark handwritten digit number written drawn please make draw"
)
PLAIN_WORDS = PLAIN.split()
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
MARKS = "'-:;()/&%+*_#"
FOREIGN = (0xA1, 0xD7FF)
"""Range of characters without a piece in the vocabulary, which spells them in bytes."""


def fill_template(template: str, digit: int, numeral: bool = False) -> str:
    """Fill a template with a digit, as a word or as a numeral."""
    return template.replace("{}", str(digit) if numeral else WORDS[digit])


def generate_prompts(count: int, random: Random) -> list[tuple[str, int]]:
    """Generate training prompts with their classes: 0 to 9, or `NOTHING`."""
    return [_generate_prompt(random) for _ in range(count)]


def _generate_prompt(random: Random) -> tuple[str, int]:
    digit, kind = random.randrange(10), random.random()
    if kind < 0.2:
        return _join_words(random, random.randrange(7)), NOTHING
    if kind < 0.6:
        return fill_template(random.choice(SEEN), digit, random.random() < 0.5), digit
    before, after = _join_words(random, random.randrange(6)), _join_words(random, random.randrange(5))
    template = f"{before} {{}}{random.choice(',.!? ')} {after}".strip()
    return fill_template(template, digit, random.random() < 0.5), digit


def _join_words(random: Random, count: int) -> str:
    """Join words in random order; some are made up, so that the encoder meets every token in any context."""
    words = (_make_up_word(random) if random.random() < 0.3 else random.choice(PLAIN_WORDS) for _ in range(count))
    return " ".join(words)


def _make_up_word(random: Random) -> str:
    return "".join(_draw_character(random) for _ in range(random.randint(2, 8)))


def _draw_character(random: Random) -> str:
    rare = random.random()
    if rare < 0.02:
        return chr(random.randrange(*FOREIGN))
    return random.choice(MARKS if rare < 0.06 else ALPHABET)
