# SPDX-License-Identifier: Apache-2.0
"""English as people write it, as literals: what is written, and the words and pauses of it."""

from __future__ import annotations

import re
import warnings

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.text.normalize import normalize_english
from sniper.tts.text.rules import RULES
from sniper.tts.text.words import pieces

# One case a line: what is written => words in small letters, a pause as its sign.
CASES = r"""
# plain text stays
Hello, world! It's me. => hello , world ! it's me .
He said no. => he said no .
A well-known, old-fashioned rock 'n' roll => a well-known , old-fashioned rock 'n' roll
the dogs' bones => the dogs' bones
Was it a max. height? He sat. Then => was it a maximum height ? he sat . then
# whole numbers, decimals, codes
12'345 => twelve thousand three hundred forty five
1_000_000 => one million
0 => zero
120 apples => one hundred twenty apples
1,984 sheep => one thousand nine hundred eighty four sheep
1,000,000 => one million
10 000 => ten thousand
1 000 000 people => one million people
3.14 => three point one four
.5 cup => point five cup
0.05 => zero point zero five
1,5 => one point five
10.000,5 => ten thousand point five
1.234.567 => one million two hundred thirty four thousand five hundred sixty seven
1,2,3 => one , two , three
007 => zero zero seven
1,234.50 => one thousand two hundred thirty four point five zero
1000000000000007 => one zero zero zero zero zero zero zero zero zero zero zero zero zero zero seven
747s and 5's and 6s => seven hundred forty sevens and fives and sixes
-5 => minus five
−5 => minus five
–1 => minus one
1 000,5 => one thousand point five
100s of => hundreds of
2023's best => twenty twenty three's best
(-3) => ( minus three )
five -2 => five minus two
# years and decades
In 1984, 1905 and 2005. => in nineteen eighty four , nineteen oh five and two thousand five .
in 1066 => in ten sixty six
in 2024 => in twenty twenty four
in 1900 => in nineteen hundred
the 1990s => the nineteen nineties
the 1990's => the nineteen nineties
the '90s => the nineties
the 90s, in her 30s => the nineties , in her thirties
the ’60s => the sixties
the 1900s => the nineteen hundreds
the 2000s => the two thousands
mid-1990s => mid-nineteen nineties
the winter of '68 => the winter of sixty eight
1914-1918 => nineteen fourteen to nineteen eighteen
1914–1918 => nineteen fourteen to nineteen eighteen
1914 - 1918 => nineteen fourteen to nineteen eighteen
1998-99 => nineteen ninety eight to ninety nine
2003-04 => two thousand three to oh four
500 BC => five hundred bc
# ordinals
the 21st => the twenty first
1st, 2nd, 3rd, 4th => first , second , third , fourth
the 12th man => the twelfth man
21st-century art => twenty first-century art
1,000th => one thousandth
# ranges, minus, scores
5 -3 => five minus three
Q1–Q2 => q one to q two
1960s-1970s and 60s–70s => nineteen sixties to nineteen seventies and sixties to seventies
$1m-$2m => one million dollars to two million dollars
i7-9700 => i seven nine thousand seven hundred
10 a.m. – 5 p.m. today => ten a m to five p m today
100 °C-200 °C => one hundred degrees celsius to two hundred degrees celsius
10-20 => ten to twenty
10–20 => ten to twenty
10 – 20 => ten to twenty
5-2=3 => five minus two equals three
18th-20th century => eighteenth to twentieth century
5-3 => five to three
5 - 3 => five minus three
5 − 3 = 2 => five minus three equals two
won 3-2 => won three to two
5%-10% => five percent to ten percent
5-10% => five to ten percent
-5 to 3–7 => minus five to three to seven
5~10 => five to ten
~5 => about five
pages 3-5 => pages three to five
5 km–10 km => five kilometers to ten kilometers
9-5 job => nine to five job
5-year-old => five-year-old
# fractions
Add 1/2 cup => add one half cup
3/4 => three quarters
2/3 => two thirds
2/3rds => two thirds
1 1/2 => one and one half
1-1/2 inches => one and one half inches
½ => one half
1½ cups => one and one half cups
1 ½ cups => one and one half cups
¾ => three quarters
⅔ => two thirds
1⁄2 => one half
24/7 => twenty four seven
9/11 => nine eleven
50/50 => fifty fifty
10/10 => ten out of ten
5/3 => five over three
1/100 => one hundredth
120/80 => one hundred twenty over eighty
1/0 => one slash zero
# powers and mathematics
x >= 5 => x greater than or equal to five
a != b => a is not equal to b
a -> b => a to b
2^3 => two cubed
2^10 => two to the power of ten
x^2 => x squared
x² + y² = z² => x squared plus y squared equals z squared
10⁻³ => ten to the power of minus three
2^n => two to the power of n
1e5 => one times ten to the power of five
1.5e-3 => one point five times ten to the power of minus three
3×10^8 => three times ten to the power of eight
2×3 => two times three
2 * 3 => two times three
2*3 => two times three
6 ÷ 2 => six divided by two
4x4 => four by four
1920x1080 => one thousand nine hundred twenty by one thousand eighty
10x faster => ten times faster
1.5x faster, a .5x zoom => one point five times faster , a point five times zoom
1.5x2, 1.5 x 2.5 m => one point five by two , one point five by two point five meters
two + two = four => two plus two equals four
5+3 => five plus three
18+ => eighteen plus
±5 => plus or minus five
5 ± 1 => five plus or minus one
a ≠ b => a is not equal to b
x ≤ 5 => x less than or equal to five
f(x) = 2x + 3 => f ( x ) equals two x plus three
5 > 3 => five greater than three
√9 => square root of nine
π ≈ 3.14 => pi approximately three point one four
5% & more => five percent and more
3.5 % => three point five percent
5‰ => five per mille
# money
$5 bill, the $100 note => five dollar bill , the one hundred dollar note
a $5 million deal => a five million dollar deal
a $5 and an €8 lunch => a five dollars and an eight euro lunch
the $5 he owes => the five dollars he owes
$3.50 or £1 => three dollars and fifty cents or one pound
$2.5 million => two point five million dollars
$1.5m => one point five million dollars
£3bn => three billion pounds
$5k => five thousand dollars
$1 => one dollar
$0.99 => ninety nine cents
$.50 => fifty cents
£2.01 => two pounds and one penny
£0.50 => fifty pence
$1,200.50 => one thousand two hundred dollars and fifty cents
$1.234 => one point two three four dollars
1.234,56 € => one thousand two hundred thirty four euros and fifty six cents
€1.234,56 => one thousand two hundred thirty four euros and fifty six cents
1.234 €. => one thousand two hundred thirty four euros .
12.345 EUR => twelve thousand three hundred forty five euros
0.234 €, 1.234 $ => zero point two three four euros , one point two three four dollars
1.234.567 € => one million two hundred thirty four thousand five hundred sixty seven euros
12'345.60 CHF => twelve thousand three hundred forty five swiss francs and sixty centimes
10 000 €, in 2019 500 € => ten thousand euros , in twenty nineteen five hundred euros
€2,5 Mio. in all => two point five million euros in all
2,5 Mrd. € or 5 mln USD => two point five billion euros or five million u s dollars
€1,5-2,5 => one point five to two point five euros
£3 bn. a year, £3 bn. The end => three billion pounds a year , three billion pounds . the end
$5 thousand. then => five thousand dollars . then
5€ => five euros
5 € => five euros
€1.20 => one euro and twenty cents
¥5 => five yen
₹5 => five rupees
₩1000 => one thousand won
50¢ => fifty cents
$1/2 => one half dollar
$5-10 million => five to ten million dollars
$5–$10 => five to ten dollars
-$5 => minus five dollars
US$5 => five u s dollars
5 USD => five u s dollars
EUR 20 => twenty euros
$1.50/kg => one dollar and fifty cents per kilogram
5,50 € => five euros and fifty cents
₹1,23,456 => one hundred twenty three thousand four hundred fifty six rupees
5%/year => five percent per year
$5/hour => five dollars per hour
$10 a day => ten dollars a day
$3 thousand => three thousand dollars
# units
It took 10s. In 30s or less => it took ten seconds . in thirty seconds or less
a 10s delay, within 60s of it => a ten second delay , within sixty seconds of it
for 80s fans, after 70s and 80s hits => for eighties fans , after seventies and eighties hits
after 1990s => after nineteen nineties
a 5kg bag, every 5 km there => a five kilogram bag , every five kilometers there
6' tall => six feet tall
a 1/4" pipe => a one quarter inch pipe
10 sq. ft. of it => ten square feet of it
0.5 in => zero point five inches
5 µF and 3 ㎏ => five microfarads and three kilograms
5 km => five kilometers
1 km => one kilometer
100 km/h => one hundred kilometers per hour
100km/h => one hundred kilometers per hour
9.8 m/s² => nine point eight meters per second squared
50 m² => fifty square meters
50 m^2 => fifty square meters
3 km² => three square kilometers
1 cm³ => one cubic centimeter
20 kB and 3 GB => twenty kilobytes and three gigabytes
5 MB/s => five megabytes per second
20 °C => twenty degrees celsius
20°C => twenty degrees celsius
-5 °C => minus five degrees celsius
1 °F => one degree fahrenheit
20° => twenty degrees
45°N => forty five degrees north
51°30′15″N => fifty one degrees thirty minutes fifteen seconds north
5'10" => five feet ten inches
5'10 tall => five feet ten inches tall
6′2″ => six feet two inches
a 10" disk => a ten inches disk
"I am 10" => i am ten
5 ft. tall => five feet tall
5 ft 3 in. => five feet three inches .
6 ft 2 in tall, 6 feet, 2 in tall => six feet two inches tall , six feet , two inches tall
2 in. of snow, 1/2 in. of rain => two inches of snow , one half inch of rain
½ lb. of it, 1/2 lb. The end => one half pound of it , one half pound . the end
1/2 in the sun => one half in the sun
9.58s => nine point five eight seconds
10 lbs => ten pounds
10 kg/m³ => ten kilograms per cubic meter
5-km run => five kilometer run
44.1 kHz => forty four point one kilohertz
5 µm => five micrometers
60 mph => sixty miles per hour
5 mg/dL => five milligrams per deciliter
100 kWh => one hundred kilowatt hours
5 min => five minutes
5 sq ft => five square feet
5 in a row => five in a row
100 MPH => one hundred miles per hour
1/3 lb and ¼ lb => one third pound and one quarter pound
1 1/2 lb => one and one half pounds
120/80 mmHg => one hundred twenty over eighty millimeters of mercury
1 kΩ => one kilohm
5° C => five degrees celsius
5¼" => five and one quarter inches
speed in km/h => speed in kilometers per hour
1/2 mile => one half mile
80 dB => eighty decibels
# times
at 10:05 => at ten oh five
at 10:30 => at ten thirty
10:30:15 => ten thirty and fifteen seconds
14:00 => fourteen hundred
09:30 => nine thirty
9:00-17:00 => nine to seventeen hundred
5 p.m. => five p m .
5 p.m. today => five p m today
5pm and 10 AM => five p m and ten a m
5:30 p.m. on Monday => five thirty p m on monday
at 5 p.m. She left => at five p m . she left
25:00 => twenty five zero zero
75:30 => seventy five thirty
1:2 => one to two
16:9 => sixteen to nine
John 3:16 => john three sixteen
3.30 pm => three thirty p m
2h30m and 1m30s => two hours thirty minutes and one minute thirty seconds
9am-5pm => nine a m to five p m
1:2:3 => one to two to three
# dates
Jan. 1–Feb. 5 => january first to february fifth
1–5 January => the first to the fifth of january
15-Jan-2024 => the fifteenth of january twenty twenty four
1999/2000 => nineteen ninety nine two thousand
1/2/2003 => january second two thousand three
13/2/2003 => february thirteenth two thousand three
12/25/99 => december twenty fifth ninety nine
15.01.2024 => january fifteenth twenty twenty four
2024-01-15 => january fifteenth twenty twenty four
2024-01-15T10:30 => january fifteenth twenty twenty four ten thirty
July 4, 1776 => july fourth , seventeen seventy six
Jan. 5, 2020 => january fifth , twenty twenty
May 5-7 => may fifth to seventh
5 January 2020 => the fifth of january twenty twenty
the 5th of May => the fifth of may
Mon., Dec. 3 => monday , december third
Sat. morning => saturday morning
in Sept. 2001 => in september two thousand one
31.12.99 => december thirty first ninety nine
2020/21 => twenty twenty twenty one
Mon-Fri and Jan.–Mar. => monday to friday and january to march
Sat 5 Nov, Sept 2001 => saturday the fifth of november , september two thousand one
3 Jan-5 Feb => the third of january to the fifth of february
# telephones and other codes
555 123 4567 => five five five one two three four five six seven
555-123-4567 => five five five one two three four five six seven
(555) 123-4567 => five five five one two three four five six seven
555-1234 => five five five one two three four
+44 20 7946 0958 => plus four four two zero seven nine four six zero nine five eight
1-800-555-1234 => one eight zero zero five five five one two three four
020 7946 0958 => zero two zero seven nine four six zero nine five eight
1234 5678 9012 3456 => one two three four five six seven eight nine zero one two three four five six
123-45-6789 => one two three four five six seven eight nine
IPv6 and HTTPv2 => i p v six and h t t p v two
localhost:8080/a is up => localhost colon eight zero eight zero slash a is up
10.0.0.1:80, localhost => one zero dot zero dot zero dot one colon eight zero , localhost
example.com:8443 => example dot com colon eight four four three
Call 911. Dial 999 or ring 112 => call nine one one . dial nine nine nine or ring one one two
911! She called 911 at once => nine one one ! she called nine one one at once
a 911 call, a 311 operator => a nine one one call , a three one one operator
911 people, page 911 => nine hundred eleven people , page nine hundred eleven
in 911, 311 => in nine hundred eleven , three hundred eleven
a 50-50 chance, 60–40, 24-7 => a fifty fifty chance , sixty forty , twenty four seven
40-60 people, 50-55, 51-50 => forty to sixty people , fifty to fifty five , fifty one to fifty
192.168.0.1 => one nine two dot one six eight dot zero dot one
1-800-FLOWERS => one eight zero zero flowers
ISBN 978-3-16-148410-0 => isbn nine seven eight three one six one four eight four one zero zero
1-2-3 => one two three
401(k) => four oh one k
version 3.2.1 => version three point two point one
v1.2.3 => version one point two point three
v2.0 and v3 => version two point zero and version three
# abbreviations
Dr. No => doctor no
Mr. Black, No. 5 => mister black , number five
Mrs. Green and Ms. Lee => missus green and miz lee
Mr Smith and Dr Who => mister smith and doctor who
Nos. 5 and 6 => numbers five and six
No. It is. => no . it is .
No. I said no. No. C is => no . i said no . no . c is
No. II is => number two is
one more rep. Bob left => one more rep . bob left
Bk. II, Chap. IV, a good chap. I => book two , chapter four , a good chap . i
Dr. Smith lives on Elm Dr. in town => doctor smith lives on elm drive in town
St. John's on Main St. today => saint john's on main street today
Hello Dr. Brown => hello doctor brown
5th Ave. is long => fifth avenue is long
e.g. apples => for example apples
i.e. that => that is that
apples, etc. => apples , et cetera .
apples, etc. and pears => apples , et cetera and pears
apples, etc. Then we left => apples , et cetera . then we left
cats vs. dogs => cats versus dogs
Fig. 3 and fig. 4 => figure three and figure four
pp. 3-5 => pages three to five
p. 7 => page seven
vol. 2, ch. 3 => volume two , chapter three
approx. 5 => approximately five
c. 1850 => circa eighteen fifty
Smith & Co. is here => smith and company is here
Acme Inc. The end => acme incorporated . the end
John Smith Jr. was => john smith junior was
a Ph.D. student => a p h d student
Smith et al. wrote => smith et al wrote
ten min. later => ten minutes later
Prof. Gen. Lt. Col. Sgt. Adams => professor general lieutenant colonel sergeant adams
Tel.: +1 (555) 123-4567 => telephone : plus one five five five one two three four five six seven
St. Louis, Mo. is => saint louis , missouri is
Sun. and Mon. in the Sun. It rose => sunday and monday in the sun . it rose
b. 1920, v. 2 => born nineteen twenty , version two
w/o sugar, w/ milk => without sugar , with milk
# initials and acronyms
J. Smith => j smith
J. R. R. Tolkien, U.S. law => j r r tolkien , u s law
J.R.R. Tolkien => j r r tolkien
U.S.A. => u s a .
in the U.S. It is => in the u s . it is
the U.S. Army => the u s army
Plan B. It works => plan b . it works
NASA and the FBI => nasa and the fbi
the US and us => the u s and us
AT&T and R&D => a t and t and r and d
rock & roll => rock and roll
MP3, B2B, A4, H2O => m p three , b two b , a four , h two o
H₂O and CO2 => h two o and c o two
COVID-19, F-16 => covid-nineteen , f-sixteen
MP3s => m p threes
4K and 5G => four k and five g
10k users => ten thousand users
Python3.11 => python three point one one
pH and a PhD => p h and a p h d
.NET => dot net
an A- or B+ => an a minus or b plus
C++ and C# => c plus plus and c sharp
# Roman numerals
IV => four
IV. Results => four . results
an IV and IV fluids; Use IV fluids => an iv and iv fluids ; use iv fluids
MIX => mix
Parts I and II => parts one and two
Chapters IV–VI => chapters four to six
Art. IV and Ch. XII => article four and chapter twelve
II, Ⅷ => two , eight
Henry VIII => henry the eighth
Louis XIV was => louis the fourteenth was
George V and Elizabeth II => george the fifth and elizabeth the second
Chapter IV => chapter four
World War II => world war two
World War I ended => world war one ended
Super Bowl LVIII => super bowl fifty eight
the XIX century => the nineteenth century
Malcolm X and I => malcolm x and i
When Elizabeth I saw => when elizabeth i saw
(iv) => ( four )
MCMXC => nineteen ninety
# slashes
and/or => and or
A/B => a b
TCP/IP => tcp ip
input/output => input slash output
he/she => he or she
n/a => not applicable
1/2/3 => one slash two slash three
# addresses, files, tags
# Heading => heading
../up => dot dot slash u p
foo.PDF => foo dot p d f
john.doe@example.com => john dot doe at example dot com
https://www.example.com/a-page => w w w dot example dot com slash a dash page
see example.co.uk. => see example dot co dot u k .
report.pdf => report dot p d f
my_file.txt => my underscore file dot t x t
/usr/bin => slash usr slash bin
C:\Users\me => c colon backslash users backslash me
os.path => o s dot path
#BlackLivesMatter => hashtag black lives matter
@some_user => at some underscore user
@ ten => at ten
#1 => number one
№ 5 and § 5 => number five and section five
Home | News => home , news
© 2020 => copyright twenty twenty
# quotes, dashes, brackets, emphasis
“Yes,” she said. => yes , she said .
«Oui» and „ja“ and ‹a› => oui and ja and a
one — two => one — two
one—two => one — two
one -- two => one -- two
one - two => one - two
Paris–London => paris london
wait... what => wait . . . what
wait… => wait …
(see [this]) => ( see [ this ] )
*really* and **bold** => really and bold
_so_ => _so_
soft­hyphen => softhyphen
1️⃣ => one
ﬁne ５ => fine five
• milk => , milk
"""
PAIRS = [tuple(line.split(" => ")) for line in CASES.strip().splitlines() if " => " in line]


def read(text: str) -> str:
    """Words and pauses of a text, as a lexicon would look them up."""
    return " ".join(pieces(normalize_english(text)))


@pytest.mark.parametrize(("text", "words"), PAIRS)
def test_cases(text, words):
    assert read(text) == words


def test_every_rule_has_a_case():
    """A rule that no case needs is no rule that anybody checked."""
    from sniper.tts.text import normalize

    used = set()
    for text, _ in PAIRS + [("word[1] x†", ""), ("mark¹ now", ""), ("so 😀", ""), ("<b>", "")]:
        spelling = normalize._one_spelling(text)
        for index, rule in enumerate(RULES):
            for match in re.finditer(rule.pattern, spelling):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if rule.say(match) is not None:
                        used.add(index)
    assert [RULES[i].why for i in sorted(set(range(len(RULES))) - used)] == []


@pytest.mark.parametrize(
    ("text", "words", "left"),
    [
        ("Hi 😀 there", "hi there", "😀"),
        ("family 👨‍👩‍👧 and 🇩🇪 and 👍🏽", "family and and", "👍"),
        ("I ❤️ it", "i it", "❤"),
        ("a word[1] more.[12] here", "a word more . here", "12"),
        ("the mark¹ here†", "the mark here", "†"),
        ("Brand™ name", "brand name", "™"),
    ],
)
def test_what_has_no_reading_is_left_out_with_a_warning(text, words, left):
    with pytest.warns(UserWarning, match="left out, it has no reading") as caught:
        assert read(text) == words
    assert any(left in str(entry.message) for entry in caught)


@pytest.mark.parametrize(
    ("text", "signs"),
    [("5 | 3", r"\|"), ("a ☃ § b", "☃ §"), ("hm ~ hm", "~"), ("<b>", "< >"), ("a ^ b $", r"\^ \$")],
)
def test_signs_without_a_reading_are_refused_by_name(text, signs):
    with pytest.raises(SpeechError, match=f"cannot be read: {signs}"):
        read(text)


@pytest.mark.parametrize("around", ["5{}3", "5 {} 3", "a{}b", "a {} b", "{}5", "5{}"])
def test_no_sign_vanishes(around):
    """Read, a pause, or refused: never as if it were not there; "a/b" and "a–b" join as "a-b"."""
    without = " ".join(read(around.format(" ")).split())
    vanished = []
    for sign in "#$%&*+/<=>@\\^|~°±×÷−–—≈≠≤≥√∞§©№€£¥₹¢‰π→←★":
        try:
            if read(around.format(sign)) == without:
                vanished.append(sign)
        except SpeechError as error:
            assert sign in str(error)
    assert vanished == (["/", "–"] if around == "a{}b" else [])


def test_what_the_lexicon_holds_as_written_stays():
    assert normalize_english("Mr. Black", {"mr", "black"}) == "mr Black"
    assert normalize_english("Mr. Black", {"mr", "mister"}) == "mister Black"


def test_plain_text_is_untouched():
    text = 'The grey horse slept; "Really?" she asked - and (so on), don\'t you?'
    assert normalize_english(text) == text


def test_a_long_text_takes_little_time():
    import time

    text = "In 1984 Mr. Smith paid $3.50 for 5 km of 1/2-inch rope, i.e. 10-20 % more. " * 400
    begin = time.process_time()
    normalize_english(text)
    assert time.process_time() - begin < 5


def test_digits_joined_by_hyphens_take_little_time():
    """Twelve times as many: not a hundred times as long."""
    import time

    def seconds(count: int) -> float:
        begin = time.process_time()
        assert normalize_english("1-2-" * count).count("one") == count
        return time.process_time() - begin

    few = min(seconds(125) for _ in range(3))
    assert seconds(1500) < 25 * few
