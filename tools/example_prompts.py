"""What the example text encoder is asked: prompts for a digit, and prompts for nothing.

Templates of `SEEN` are trained on, those of `HELD_OUT`, and most words in them, are not: they tell whether the encoder
reads prompts or knows them by heart.
"""

from __future__ import annotations

from random import Random

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOTHING = 10
"""What a prompt without a digit asks for: the row of the class table that stands for "nothing asked"."""

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
"""Range of the characters that the vocabulary has no piece for and spells in bytes."""


def named(template: str, digit: int, numeral: bool = False) -> str:
    """The prompt of a template for a digit, as a word or as a numeral."""
    return template.replace("{}", str(digit) if numeral else WORDS[digit])


def prompts(count: int, random: Random) -> list[tuple[str, int]]:
    """Prompts to train on and what each asks for: 0 to 9, or `NOTHING`."""
    return [_prompt(random) for _ in range(count)]


def _prompt(random: Random) -> tuple[str, int]:
    digit, kind = random.randrange(10), random.random()
    if kind < 0.2:
        return _words(random, random.randrange(7)), NOTHING
    if kind < 0.6:
        return named(random.choice(SEEN), digit, random.random() < 0.5), digit
    before, after = _words(random, random.randrange(6)), _words(random, random.randrange(5))
    template = f"{before} {{}}{random.choice(',.!? ')} {after}".strip()
    return named(template, digit, random.random() < 0.5), digit


def _words(random: Random, count: int) -> str:
    """Words in no order; some are made up, so that the encoder has met every token in any company."""
    return " ".join(_made_up(random) if random.random() < 0.3 else random.choice(PLAIN_WORDS) for _ in range(count))


def _made_up(random: Random) -> str:
    return "".join(_character(random) for _ in range(random.randint(2, 8)))


def _character(random: Random) -> str:
    rare = random.random()
    if rare < 0.02:
        return chr(random.randrange(*FOREIGN))
    return random.choice(MARKS if rare < 0.06 else ALPHABET)
