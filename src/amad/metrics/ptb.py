"""Tokens of captions as the caption scorers take them: by the scorers' own tokenizer in Java, or by ours."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from amad.errors import DataError

INSTALL_JAVA = "apt-get install default-jre-headless, or conda install -c conda-forge openjdk"

# Whatever ends a line for Java or for Python would tear a caption apart on its way through the scorers.
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))

_DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_REWRITTEN = _BRACKETS | {"£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4"}
_LEVELLED = str.maketrans({"’": "'", "‘": "`", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."})

_ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr sgt gen gov sen rep rev capt lt col mt ft ave blvd rd inc co corp ltd bros "
    "dept etc vs"
)
_DATES = "Jan Feb Mar Apr Aug Sept Sep Oct Nov Dec Mon Tue Tues Wed Thu Thurs Fri"
_TWO_WORDS = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"} | {
    "gimme": "gim me",
    "lemme": "lem me",
    "'tis": "'t is",
    "'twas": "'t was",
}
_CLITIC = re.compile(r"(?<=.)(n't|'(?:s|m|d|re|ve|ll))$")

_WORD = r"[^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*"
_TOKEN = re.compile(
    rf"""
    https?://\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ | [@#][A-Za-z]\w*
  | </?[A-Za-z][^<>]*>
  | (?P<face>[:;=]-?[()])
  | \.{{3}} | --+ | [?!]+ | \*+ | _+ | ``|''
  | (?P<quote>")
  | (?:[A-Za-z]\.)+(?![^\W_])                        # p.m.  U.S.  A.
  | (?i:{"|".join(_ABBREVIATIONS.split())})\.(?!\w)
  | (?:{"|".join(_DATES.split())})\.(?!\w)
  | [Nn]o\.(?=\s*\d)
  | '(?:\d\ds\b|n'|(?:em|till?|cause|n|tis|twas|s|m|d|re|ve|ll)\b(?!'))
  | [+-]?\d+(?::\d+)+(?=[A-Za-z])                    # 10:30 of 10:30am
  | [+-]?\d+(?:[.,:/]\d+)+(?![^\W\d_])
  | (?<!\w)[+-]\d+
  | [A-Z]+(?:&[A-Z]+)+
  | (?i:US)\$
  | {_WORD}(?:[-./_!?]{_WORD})*(?:'(?!n')[^\W_]+)*(?:\+\+|\#(?!\w))?
  | \S
    """,
    re.VERBOSE,
)


def on_one_line(caption: str) -> str:
    """The caption with a space for every line break, of whatever kind."""
    return caption.translate(_LINE_BREAKS)


def has_java() -> bool:
    """Whether ``java`` is on the path; the tokenizer of the reference scorers, METEOR and SPICE need it."""
    return shutil.which("java") is not None


def tokenize_in_java(captions: Sequence[str]) -> list[str]:
    """What the scorers' tokenizer makes of captions without line breaks, in one run of Java.

    Tokens are parted by spaces, and the scorers' list of marks is dropped. Their own wrapper of the same
    archive writes into its package's folder and does not notice where Java fails.

    Raises:
        DataError: if Java fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [
        "java",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ]
    text = "".join(f"{one}\n" for one in captions).encode()
    try:
        done = subprocess.run(command, input=text, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (
            error.stderr.decode(errors="replace")
            if isinstance(error, subprocess.CalledProcessError)
            else error
        )
        raise DataError(
            f"the captions' tokenizer runs in Java, which failed: {str(said).strip()[-300:] or error}. Try `java "
            f"-version`; a working one comes by {INSTALL_JAVA}."
        ) from None
    lines = done.stdout.decode().split("\n")[:-1]
    if len(lines) != len(captions):
        raise DataError(
            f"the captions' tokenizer must give a line per caption but gave {len(lines)} for {len(captions)}. "
            "Look for control characters in the captions."
        )
    dropped = frozenset(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(one for one in line.rstrip().split(" ") if one not in dropped) for line in lines]


def tokenize(caption: str) -> list[str]:
    """The tokens by which a caption is scored: lower-case, clitics apart, common punctuation dropped.

    Follows what the Stanford tokenizer that the caption scorers run (CoreNLP 3.4.1, ``PTBTokenizer
    -lowerCase``) and their list of dropped marks make of captions: "don't" is "do n't", "dog's" is "dog 's",
    "(" is "-lrb-" and stays, "mr." and "p.m." keep their full stop.
    """
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption.replace("&amp;", "&").translate(_LEVELLED)):
        token = match.group()
        if match.lastgroup == "quote":
            continue
        if match.lastgroup == "face":
            token = token.replace("(", "-lrb-").replace(")", "-rrb-")
        tokens += [one for one in _parts(token.lower()) if one not in _DROPPED]
    return tokens


def _parts(token: str) -> list[str]:
    """A token, or the several that a contraction stands for."""
    if token in _TWO_WORDS:
        return _TWO_WORDS[token].split()
    clitics: list[str] = []
    while match := _CLITIC.search(token):
        clitics.insert(0, match.group())
        token = token[: match.start()]
    return [_REWRITTEN.get(token, token), *clitics]
