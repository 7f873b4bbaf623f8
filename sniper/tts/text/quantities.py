# SPDX-License-Identifier: Apache-2.0
"""Units and currencies: their signs, their names, and how an amount of them is read."""

from __future__ import annotations

import re

from sniper.tts.text.numerals import NUMBER, decimal_words, number_words

_PREFIXES = {
    "k": "kilo",
    "K": "kilo",
    "M": "mega",
    "G": "giga",
    "T": "tera",
    "P": "peta",
    "h": "hecto",
    "d": "deci",
    "c": "centi",
    "m": "milli",
    "µ": "micro",
    "μ": "micro",
    "u": "micro",
    "n": "nano",
}
# Symbol, name, and the prefixes that are in use with it.
_PREFIXED = (
    ("m", "meter", "kcdmµμn"),
    ("g", "gram", "kmµμ"),
    ("l", "liter", "hdcm"),
    ("L", "liter", "dcmµμ"),
    ("Hz", "hertz", "kMGT"),
    ("W", "watt", "kMGTm"),
    ("Wh", "watt hour", "kMGT"),
    ("F", "farad", "µμn"),
    ("V", "volt", "kMmµμ"),
    ("A", "amp", "mk"),
    ("Pa", "pascal", "khMG"),
    ("J", "joule", "kMG"),
    ("N", "newton", "k"),
    ("s", "second", "mµμn"),
    ("eV", "electron volt", "kMGT"),
    ("cal", "calorie", "k"),
    ("mol", "mole", "m"),
    ("B", "byte", "kKMGTP"),
    ("bit", "bit", "kKMGT"),
    ("bps", "bit per second", "kKMGT"),
)
_NAMED = {
    "m": "meter",
    "g": "gram",
    "l": "liter",
    "L": "liter",
    "s": "second",
    "h": "hour",
    "Hz": "hertz",
    "W": "watt",
    "Wh": "watt hour",
    "V": "volt",
    "Pa": "pascal",
    "J": "joule",
    "Ω": "ohm",
    "eV": "electron volt",
    "cal": "calorie",
    "mol": "mole",
    "bit": "bit",
    "bps": "bit per second",
    "min": "minute",
    "mins": "minute",
    "sec": "second",
    "secs": "second",
    "hr": "hour",
    "hrs": "hour",
    "yr": "year",
    "yrs": "year",
    "wk": "week",
    "wks": "week",
    "mo": "month",
    "in": "inch",
    "ft": "foot",
    "yd": "yard",
    "yds": "yard",
    "mi": "mile",
    "lb": "pound",
    "lbs": "pound",
    "oz": "ounce",
    "fl oz": "fluid ounce",
    "gal": "gallon",
    "qt": "quart",
    "tsp": "teaspoon",
    "tbsp": "tablespoon",
    "acre": "acre",
    "ha": "hectare",
    "cu ft": "cubic foot",
    "cu in": "cubic inch",
    "sq ft": "square foot",
    "sq in": "square inch",
    "sq m": "square meter",
    "sq km": "square kilometer",
    "sq mi": "square mile",
    "cc": "cubic centimeter",
    "Mb": "megabit",
    "Gb": "gigabit",
    "kb": "kilobit",
    "kΩ": "kilohm",
    "MΩ": "megohm",
    "mmHg": "millimeter of mercury",
    "MPH": "mile per hour",
    "mph": "mile per hour",
    "kph": "kilometer per hour",
    "kmh": "kilometer per hour",
    "km/h": "kilometer per hour",
    "rpm": "revolution per minute",
    "bpm": "beat per minute",
    "fps": "frame per second",
    "dpi": "dot per inch",
    "ppm": "part per million",
    "ppb": "part per billion",
    "psi": "pound per square inch",
    "mpg": "mile per gallon",
    "dB": "decibel",
    "dBA": "decibel",
    "px": "pixel",
    "hp": "horsepower",
    "bar": "bar",
    "atm": "atmosphere",
    "°C": "degree Celsius",
    "℃": "degree Celsius",
    "°F": "degree Fahrenheit",
    "℉": "degree Fahrenheit",
    "°": "degree",
    "%": "percent",
    "‰": "per mille",
    "°N": "degree north",
    "°S": "degree south",
    "°E": "degree east",
    "°W": "degree west",
}
UNITS = _NAMED | {
    prefix + symbol: _PREFIXES[prefix] + name
    for symbol, name, prefixes in _PREFIXED
    for prefix in prefixes
}
_SAME_PLURAL = {"hertz", "horsepower", "percent", "per mille"}
_PLURALS = {"foot": "feet", "inch": "inches"}
# "6 ft 2 in tall": behind feet, the "in" of the next number is no word.
_FEET = re.compile(r"\d\s?(?:ft\.?|feet|foot),?\s$")
# With a space and without their dot these are words ("5 in a row", "10 min" is not).
_TOO_SHORT = {"in", "A", "mo", "bar"}
# Longest first: of alternatives a pattern takes the first that fits, and "m" fits "mm".
_SYMBOLS = "|".join(re.escape(symbol) for symbol in sorted(UNITS, key=len, reverse=True))
_POWER = r"(?:\^?[23]|[²³])"
UNIT_END = r"(?![\w²³°]|/[A-Za-z]|')"
UNIT = rf"(?:{_SYMBOLS}){_POWER}?(?:\s?/\s?(?:{_SYMBOLS}){_POWER}?)?"
# The dot of a unit itself, where its sentence goes on: before a digit only as in "6 ft. 2 in.".
_SMALLER = r"\d[\d.,/]*[\s-]?(?:inch(?:es)?|in|oz|mins?|secs?|s)(?![\w'])"
UNIT_DOT = rf"\.(?=\s+(?:[a-z(]|{_SMALLER})|,|\s?[$£€](?!\s?\d))"
# Groups: amount, what stands between, unit, dot.
QUANTITY = rf"({NUMBER})([\s\u00a0\u202f]?|-)({UNIT}){UNIT_END}({UNIT_DOT})?"
# A unit without a number is certain only where it has a slash, a power or a degree.
_RATE = rf"(?:{_SYMBOLS}){_POWER}?/(?:{_SYMBOLS}){_POWER}?"
ALONE = rf"(?<![\w/.])({_RATE}|k?m[²³]|[cm]m[²³]|°[CF]|℃|℉){UNIT_END}"
_UNIT_PARTS = re.compile(rf"({_SYMBOLS})({_POWER})?")

_PLURAL = {"penny": "pence", "yen": "yen", "yuan": "yuan", "won": "won", "baht": "baht"}
_PLURAL |= {"dong": "dong", "satang": "satang", "Swiss franc": "Swiss francs"}
CURRENCIES = {
    "$": ("dollar", "cent"),
    # Letter by letter, or it is read as the pronoun.
    "US$": ("U S dollar", "cent"),
    "A$": ("Australian dollar", "cent"),
    "C$": ("Canadian dollar", "cent"),
    "NZ$": ("New Zealand dollar", "cent"),
    "HK$": ("Hong Kong dollar", "cent"),
    "R$": ("real", "centavo"),
    "£": ("pound", "penny"),
    "€": ("euro", "cent"),
    "¥": ("yen", "sen"),
    "￥": ("yen", "sen"),
    "₹": ("rupee", "paisa"),
    "₩": ("won", "jeon"),
    "₽": ("ruble", "kopek"),
    "₺": ("lira", "kurus"),
    "₴": ("hryvnia", "kopek"),
    "₦": ("naira", "kobo"),
    "₱": ("peso", "centavo"),
    "₫": ("dong", "xu"),
    "₪": ("shekel", "agora"),
    "฿": ("baht", "satang"),
    "₿": ("bitcoin", "cent"),
    "USD": ("U S dollar", "cent"),
    "EUR": ("euro", "cent"),
    "GBP": ("pound", "penny"),
    "JPY": ("yen", "sen"),
    "CHF": ("Swiss franc", "centime"),
    "CAD": ("Canadian dollar", "cent"),
    "AUD": ("Australian dollar", "cent"),
    "INR": ("rupee", "paisa"),
    "CNY": ("yuan", "fen"),
    "SEK": ("krona", "ore"),
    "BTC": ("bitcoin", "cent"),
}
# Where the decimal sign is a dot.
_AMERICAN = frozenset(sign for sign in CURRENCIES if "$" in sign)
_AMERICAN |= frozenset("£ ¥ ￥ ₹ ₩ ₱ ₿ ฿ ₪ ₦ USD GBP JPY CAD AUD INR CNY BTC CHF".split()) - {"R$"}
_MAGNITUDES = {"k": "thousand", "m": "million", "mn": "million", "mm": "million"}
_MAGNITUDES |= {"b": "billion", "bn": "billion", "t": "trillion", "tn": "trillion"}
_MAGNITUDES |= {"mio": "million", "mln": "million", "mrd": "billion", "bln": "billion"}
MILLIONS = "[Mm]io|[Mm]ln|[Mm]rd|[Bb]ln|[MmBbTt]n"
_CODES = "|".join(re.escape(code) for code in sorted(CURRENCIES, key=len, reverse=True))
CURRENCY_SIGNS = "".join(sign for sign in CURRENCIES if len(sign) == 1)
_MAGNITUDE = (
    r"(?:[\s\u00a0-]?(hundred|thousand|(?:m|b|tr|quadr)illion|[kKmMbBtT]|mm"
    rf"|(?:{MILLIONS})(?:{UNIT_DOT})?)(?:s\b)?(?![\w']))?"
)
# As the continent of Europe writes it: "5,50", "2,5", "1.234,56", "1.234.567", "12'345". One dot
# before three digits is America's, $1.234, unless the sign stands behind: see `money_behind`.
_EUROPEAN = (
    r"(?:(?:\d{1,3}(?:\.\d{3})+|\d+),\d{1,2}(?![\d,]|\.\d)|\d{1,3}(?:\.\d{3}){2,}(?![.,]?\d)"
    r"|\d{1,3}(?:'\d{3})+(?:[.,]\d{1,2})?(?![.,]?\d))"
)
_SPACED = r"(?<!\d\s)\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d{1,2})?(?![.,]?\d)"
_AMOUNT = rf"{_EUROPEAN}|{NUMBER}"
# Groups: currency, sign, amount, amount that a range goes to, magnitude.
MONEY = (
    rf"(?<![\w$£€])({_CODES})\s?([-−]?)({_AMOUNT})"
    rf"(?:\s?[-–]\s?(?:{_CODES})?({_AMOUNT}))?(?!\d|/\d){_MAGNITUDE}"
)
# Groups: amount, magnitude, currency; "5$" alone, "$5 $6" not.
MONEY_BEHIND = (
    rf"({_SPACED}|{_AMOUNT}){_MAGNITUDE}[\s\u00a0]?([{re.escape(CURRENCY_SIGNS)}]|[A-Z]{{3}})"
    r"(?![\w]|\s?\d)"
)
CENTS = rf"({NUMBER})\s?¢"


def unit_words(unit: str, one: bool) -> str:
    """ "km/h" as "kilometer per hour", or in the plural."""
    if unit in UNITS:
        return _name(UNITS[unit], one)
    above, _, below = re.sub(r"\s?/\s?", "/", unit).partition("/")
    words = _powered(above, one)
    return f"{words} per {_powered(below, True)}" if below else words


def _powered(unit: str, one: bool) -> str:
    if unit in UNITS:
        return _name(UNITS[unit], one)
    match = _UNIT_PARTS.fullmatch(unit)
    assert match is not None, unit
    name, power = _name(UNITS[match[1]], one), (match[2] or "")[-1:]
    # A square meter is an area; a second squared is none.
    if UNITS[match[1]].endswith("second"):
        return name + (" squared" if power in "2²" else " cubed")
    return ("square " if power in "2²" else "cubic ") + name


def _name(name: str, one: bool) -> str:
    if one or name in _SAME_PLURAL:
        return name
    # What is counted has the plural: miles per hour, millimeters of mercury.
    first, per, rest = name.partition(" of " if " of " in name else " per ")
    *others, noun = first.split(" ")
    # Behind the noun stands what kind it is: degrees Celsius.
    if noun in ("Celsius", "Fahrenheit", "north", "south", "east", "west"):
        return f"{others[0]}s {noun}"
    return " ".join([*others, _PLURALS.get(noun) or _plural(noun)]) + per + rest


def _plural(noun: str) -> str:
    if noun.endswith("hertz") or noun in _SAME_PLURAL or noun in _PLURAL.values():
        return noun
    return noun + "s"


def quantity(match: re.Match) -> str | None:
    """A match of QUANTITY in words, or None where the letters are no unit."""
    amount, between, unit = match[1], match[2], match[3]
    dot = match[4] or ""
    bare = not dot and not re.match(r"\.(?:\s|$|\))", match.string[match.end() :])
    words_follow = re.match(r"\s+\w|-", match.string[match.end() :])
    like_word = words_follow and not _FEET.search(match.string[: match.start()][-9:])
    if between and unit in _TOO_SHORT and bare and (like_word or unit != "in"):
        return None
    if unit == "s" and not between and "." not in amount and not _are_seconds(match):
        return None  # "the 5s", "her 30s"
    if unit == "in" and not between and bare and match.string[match.end() :].startswith("-"):
        return None
    # "A 5-mile walk", "a 5kg bag": with a hyphen, and behind an article, it describes and has no
    # plural. "Every 5 km" and "another 5 km" may count.
    article = re.search(r"\b[Aa]n?\s$", match.string[: match.start()][-4:])
    noun = not dot and re.match(_NOUN, match.string[match.end() :])
    whole = amount == "1" or between == "-" or bool(article and noun)
    return f"{decimal_words(amount)} {unit_words(unit, whole)}"


# "It took 10s", "wait 10s, then go", "a 10s delay": what has a length or is waited for. Else "10s"
# are tens, and "the 90s" a decade; "for 80s fans" and "after 80s and 90s hits" are none of time.
_LASTS = r"(?:took|takes?|taken|taking|wait(?:s|ed|ing)?|last(?:s|ed|ing)?|in|after|for|every)\s$"
_GOES_ON = (
    r"(?:[.,;:!?)]|\s(?:to|or\s(?:so|less|more)|then|before|at|on|until|while|when|each)\b|\s*$)"
)
_TIMED = (
    r"\s(?:long|ago|later|apart|timers?|timeouts?|delays?|pauses?|breaks?|waits?|limits?|windows?|"
    r"intervals?|countdowns?|clips?)\b"
)


def _are_seconds(match: re.Match) -> bool:
    """Whether the "s" that is glued to a number stands for seconds."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    # "After 1990s" is a decade whatever stands around it.
    if re.fullmatch(r"[12]\d\d0", match[1]):
        return False
    lasts = re.search(rf"(?i)\b{_LASTS}", before[-12:]) and re.match(_GOES_ON, after)
    return bool(lasts or re.search(r"(?i)\bwithin\s$", before[-8:]) or re.match(_TIMED, after))


# What an amount describes: "a five dollar bill". Behind an article any noun is described by it.
_PRICED = r"(?:bank)?notes?|bills?|coins?|tickets?|checks?|vouchers?|fines?|fees?|bets?"
_NO_NOUN = (
    "a|an|and|are|as|at|because|but|by|each|every|for|from|he|i|if|in|into|is|it|less|more|of|off|"
    "on|or|over|per|she|so|than|that|the|they|to|too|under|was|we|were|when|which|who|with|you"
)
_NOUN = rf"\s(?!(?:{_NO_NOUN})\b)[a-z]"


def money(match: re.Match) -> str:
    """A match of MONEY in words."""
    minus = "minus " if match[2] else ""
    if match[4]:
        upto = amount_words(match[1], match[4], match[5])
        return f"{minus}{decimal_words(_american(match[3]))} to {upto}"
    words = amount_words(match[1], match[3], match[5])
    unit = CURRENCIES[match[1]][0]
    plural = _PLURAL.get(unit) or unit + "s"
    if words.endswith(plural) and _describes(match):
        words = words.removesuffix(plural) + unit
    return minus + words


def _describes(match: re.Match) -> bool:
    """Whether an amount says what the noun behind it is worth: it has no plural then."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    if re.match(rf"[\s-](?:{_PRICED})\b|-a-\w", after):
        return True
    article = re.search(r"(?i)\b(?:an?|another|every|each)\s$", before)
    return bool(article and re.match(_NOUN, after))


def money_behind(match: re.Match) -> str | None:
    """A match of MONEY_BEHIND in words, or None where three capitals are no currency."""
    if match[3] not in CURRENCIES:
        return None
    amount = match[1]
    # "1.234 €": who writes the euro behind parts thousands by a dot, and no price has thousandths.
    if not match[2] and match[3] not in _AMERICAN and re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", amount):
        amount = amount.replace(".", "")
    return amount_words(match[3], amount, match[2])


def _american(amount: str) -> str:
    """An amount with commas between its thousands, or nothing, and a dot before its decimals."""
    amount = re.sub(r"['\s]", "", amount)
    if re.fullmatch(_EUROPEAN, amount):
        amount = amount.replace(".", "").replace(",", ".")
    return amount


def amount_words(currency: str, amount: str, magnitude: str | None) -> str:
    """ "1.50" of "$" as one dollar and fifty cents, "1.5" with "m" as one point five million."""
    unit, cent = CURRENCIES[currency]
    amount = _american(amount)
    whole, _, fraction = amount.replace(",", "").partition(".")
    plural = _PLURAL.get(unit) or unit + "s"
    # Cents have two digits; $1.5 and $1.505 are decimals.
    if magnitude or len(fraction) not in (0, 2) or (whole.startswith("0") and len(whole) > 1):
        words = decimal_words(amount)
        if magnitude:
            key = magnitude.lower().rstrip(".")
            words += " " + _MAGNITUDES.get(key, key)
        return f"{words} {plural}"
    units, cents = int(whole or 0), int(fraction or 0)
    parts = []
    if units or not cents:
        parts.append(f"{number_words(units)} {unit if units == 1 else plural}")
    if cents:
        many = _PLURAL.get(cent) or cent + "s"
        parts.append(f"{number_words(cents)} {cent if cents == 1 else many}")
    return " and ".join(parts)
