"""Tokens of captions without Java: the conventions of the Penn Treebank as the caption scorers apply them."""

import re

TOKENIZER = "amad-ptb"
"""What a signature calls this tokenizer."""

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
