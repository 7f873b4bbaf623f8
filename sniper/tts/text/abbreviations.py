# SPDX-License-Identifier: Apache-2.0
"""English abbreviations: what they stand for, where, and whether their dot may end a sentence."""

from __future__ import annotations

import re

MONTHS = {
    "jan": "January",
    "feb": "February",
    "mar": "March",
    "apr": "April",
    "may": "May",
    "jun": "June",
    "jul": "July",
    "aug": "August",
    "sep": "September",
    "sept": "September",
    "oct": "October",
    "nov": "November",
    "dec": "December",
}
WEEKDAYS = {
    "mon": "Monday",
    "tue": "Tuesday",
    "tues": "Tuesday",
    "wed": "Wednesday",
    "thu": "Thursday",
    "thur": "Thursday",
    "thurs": "Thursday",
    "fri": "Friday",
    "sat": "Saturday",
    "sun": "Sunday",
}
# In front of a name. The dot is left out in British spelling.
TITLES = {
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "messrs": "messieurs",
    "mx": "mix",
    "dr": "doctor",
    "drs": "doctors",
    "prof": "professor",
    "st": "saint",
    "sts": "saints",
    "mt": "mount",
    "ft": "fort",
    "capt": "captain",
    "cpt": "captain",
    "col": "colonel",
    "gen": "general",
    "lt": "lieutenant",
    "sgt": "sergeant",
    "maj": "major",
    "cpl": "corporal",
    "pvt": "private",
    "adm": "admiral",
    "cmdr": "commander",
    "gov": "governor",
    "sen": "senator",
    "rep": "representative",
    "pres": "president",
    "supt": "superintendent",
    "rev": "reverend",
    "fr": "father",
    "hon": "honourable",
}
# Behind a name.
STREETS = {
    "st": "street",
    "dr": "drive",
    "ave": "avenue",
    "blvd": "boulevard",
    "rd": "road",
    "ln": "lane",
    "hwy": "highway",
    "sq": "square",
    "pl": "place",
    "ct": "court",
}
# In front of a number; without one these are words, or the ends of sentences.
BEFORE_NUMBERS = {
    "no": "number",
    "nos": "numbers",
    "fig": "figure",
    "figs": "figures",
    "p": "page",
    "pp": "pages",
    "vol": "volume",
    "vols": "volumes",
    "ch": "chapter",
    "chap": "chapter",
    "bk": "book",
    "sec": "section",
    "art": "article",
    "eq": "equation",
    "eqs": "equations",
    "tab": "table",
    "pt": "part",
    "ext": "extension",
    "tel": "telephone",
    "op": "opus",
    "c": "circa",
    "ca": "circa",
    "ver": "version",
    "v": "version",
    "nr": "number",
    "apt": "apartment",
    "b": "born",
    "d": "died",
    "lat": "latitude",
    "rev": "revision",
}
# Anywhere, with their dot.
ANYWHERE = {
    "etc": "et cetera",
    "vs": "versus",
    "e.g": "for example",
    "i.e": "that is",
    "cf": "compare",
    "viz": "namely",
    "et al": "et al",
    "a.k.a": "also known as",
    "approx": "approximately",
    "ca": "circa",
    "dept": "department",
    "depts": "departments",
    "govt": "government",
    "est": "established",
    "incl": "including",
    "excl": "excluding",
    "esp": "especially",
    "misc": "miscellaneous",
    "max": "maximum",
    "min": "minimum",
    "avg": "average",
    "temp": "temperature",
    "appt": "appointment",
    "asst": "assistant",
    "assn": "association",
    "univ": "university",
    "inc": "incorporated",
    "ltd": "limited",
    "corp": "corporation",
    "co": "company",
    "cos": "companies",
    "bros": "brothers",
    "intl": "international",
    "jr": "junior",
    "sr": "senior",
    "esq": "esquire",
    "ed": "editor",
    "eds": "editors",
    "vol": "volume",
    "fig": "figure",
    "ph.d": "P H D",
    "hr": "hour",
    "hrs": "hours",
    "mins": "minutes",
    "secs": "seconds",
    "sq": "square",
    "cu": "cubic",
}
# Words that begin sentences and hardly ever follow an abbreviation inside one. After "U.S." a
# capital alone says nothing: it may be "U.S. Army".
STARTERS = frozenset(
    """
    a about after all also although an and another any are as at because before both but by can
    could did do does during each even every everyone everything few first for from had has have
    he her here hers his how however i i'd i'll i'm i've if in indeed instead is it it's its just
    last later let many may maybe meanwhile more most my neither next no nobody none nor not
    nothing now of on once one only or other others our perhaps please she should since so some
    someone something sometimes soon still such that that's the their then there there's these
    they they're this those though through thus to today together too two under until was we
    we're were what when whenever where whether which while why will with within without
    would yes yesterday yet you you're your
    """.split()
)
# Words of their own that only a capital and what follows make abbreviations ("Sat. morning").
_AMBIGUOUS = {"ed", "max", "min", "sq", "co", "cos", "est", "temp", "cu", "mar", "sat", "sun"}
_AMBIGUOUS |= {"mon", "wed", "fri", "dec", "jan", "sr", "inc", "corp", "sec", "art", "pt"}
_WORDS_TOO = {
    "ft",
    "mt",
    "rep",
    "gen",
    "ms",
    "fr",
    "maj",
    "pres",
    "sen",
    "adm",
    "gov",
    "sts",
    "mx",
    "drs",
}
# Behind a place and a comma.
STATES = {
    "ala": "Alabama", "ariz": "Arizona", "ark": "Arkansas", "calif": "California",
    "colo": "Colorado", "conn": "Connecticut", "del": "Delaware", "fla": "Florida", "ga": "Georgia",
    "ill": "Illinois", "ind": "Indiana", "kan": "Kansas", "ky": "Kentucky", "mass": "Massachusetts",
    "md": "Maryland", "mich": "Michigan", "minn": "Minnesota", "miss": "Mississippi",
    "mo": "Missouri", "mont": "Montana", "neb": "Nebraska", "nev": "Nevada", "okla": "Oklahoma",
    "ore": "Oregon", "pa": "Pennsylvania", "tenn": "Tennessee", "tex": "Texas", "va": "Virginia",
    "vt": "Vermont", "wash": "Washington", "wis": "Wisconsin", "wyo": "Wyoming",
}  # fmt: skip
SLASHED = {
    "and/or": "and or",
    "w/o": "without",
    "w/": "with",
    "c/o": "care of",
    "b/c": "because",
    "n/a": "not applicable",
    "he/she": "he or she",
    "she/he": "she or he",
    "his/her": "his or her",
    "him/her": "him or her",
    "yes/no": "yes or no",
    "true/false": "true or false",
    "either/or": "either or",
    "a/c": "A C",
}

# Behind the time of a clock, beside days and months. In capitals, or "et" and "pt" would be words.
ZONES = frozenset(
    """
    EST EDT ET CST CDT CT MST MDT MT PST PDT PT AKST AKDT HST GMT UTC BST WET WEST CET CEST EET EEST
    MSK IST PKT SGT HKT JST KST AWST ACST ACDT AEST AEDT NZST NZDT SAST BRT
    """.split()
)
REGIONS = frozenset(("Eastern", "Central", "Mountain", "Pacific", "Greenwich"))  # that have a time

# "U.S. Army" and "etc. and" go on, "U.S. It is" and "etc. The" do not: see `sentences`.
CLOCK = frozenset(("a.m", "p.m", "am", "pm"))
OFTEN_LAST = CLOCK | {"etc", "ph.d", "b.c", "a.d", "esq"}
# With a capital titles ("Gov. Smith"), without one words that may end a sentence ("one more rep.").
WORDS_OR_TITLES = frozenset(("gov", "ft", "rep", "gen"))
SOMETIMES_LAST = (
    frozenset(("al", *STREETS, *STATES, *ANYWHERE, *MONTHS, *WEEKDAYS)) - OFTEN_LAST - {"may"}
)
# A street may end a sentence and a saint may not; "No." before a number is seen by `has_number`.
NEVER_LAST = (frozenset(TITLES) - frozenset(STREETS) - WORDS_OR_TITLES) | {
    "e.g",
    "i.e",
    "vs",
    "cf",
    "viz",
    "fig",
    "figs",
    "nos",
    "vol",
    "vols",
    "ch",
    "bk",
    "pp",
    "approx",
    "ca",
}
_NAMES = "|".join(sorted((*TITLES, *STREETS, *BEFORE_NUMBERS, *STATES), key=len, reverse=True))
_OTHERS = "|".join(
    re.escape(name).replace(r"\ ", r"\s")
    for name in sorted((*ANYWHERE, *MONTHS, *WEEKDAYS), key=len, reverse=True)
    if name != "may"
)
DOTTED = rf"\b(?:{_OTHERS}|{_NAMES})\."
UNDOTTED = r"\b(?:Mr|Mrs|Ms|Dr|Prof|St)(?=\s[A-Z])"


def has_number(key: str, after: str) -> bool:
    """Whether the abbreviation `key`, in small letters, stands in front of its number."""
    # "b. 1920" is a birth and "b. 1" an item of a list, so behind "b." and "d." only a year counts.
    # A numeral of one letter may be a word: "No. I said no."
    number = r"\s*\d{4}\b" if key in ("b", "d") else r"\s*:?\s*[#(+]?\d|\s*[IVXLC]{2,}\b"
    return key in BEFORE_NUMBERS and re.match(number, after) is not None


def expand(word: str, before: str, after: str) -> str | None:
    """What an abbreviation stands for where it stands, or None where it is none.

    Args:
        word: without its dot.
        before, after: the text around it and its dot.
    """
    key = " ".join(word.lower().split())
    if has_number(key, after):
        return BEFORE_NUMBERS[key]
    following = re.match(r"\s+([A-Z][\w']*)", after)
    # "St. John" and "Main St. is", "Main St. The": a name that follows makes it a title.
    titled = following is not None and following[1].lower() not in STARTERS
    named = re.search(r"[A-Z][\w'’]*\s$|\d(?:st|nd|rd|th)\s$", before) is not None
    # Streets before titles: "Main St. James" is rarer than "Main St.".
    if key in STREETS and word[0].isupper() and named and not (key in TITLES and titled):
        return STREETS[key]
    small = key in WORDS_OR_TITLES and word[0].islower()
    if key in TITLES and (key not in _WORDS_TOO or (titled and not small)):
        return TITLES[key]
    # Only behind a comma: Ill., Miss. and Wash. are words as well.
    if key in STATES and before.endswith(", "):
        return STATES[key]
    # A small letter behind the dot: no sentence has ended.
    dated = re.match(r"\s*[,;]|\s+(?:\d|[a-z])", after)
    if key in MONTHS | WEEKDAYS:
        named_day = (MONTHS | WEEKDAYS)[key]
        return named_day if word[0].isupper() and (key not in _AMBIGUOUS or dated) else None
    if key == "min" and re.search(
        r"(?i)(?:one|two|three|four|five|ix|ven|ight|ine|ten|ty|teen|few|several)\s$", before
    ):
        return "minutes"
    if key in ANYWHERE:
        plain_end = key in _AMBIGUOUS and not re.match(r"\s*,|\s+[a-z\d(]", after)
        return None if plain_end and not word[0].isupper() else ANYWHERE[key]
    return None
