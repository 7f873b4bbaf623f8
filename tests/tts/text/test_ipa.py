# SPDX-License-Identifier: Apache-2.0
"""espeak-ng's phones among those of MFA's dictionaries and of other notations."""

from __future__ import annotations

import pytest

from sniper.tts.text.ipa import IpaPhones, simple_phones
from sniper.tts.text.new_words import Guess
from sniper.tts.text.text import LexiconFrontend, Vocabulary

# The phones of MFA's dictionaries of version 3.1 (and 3.0 for ARPAbet), as their pages list them.
US_MFA = (
    "aj aw b bʲ c cʰ cʷ d dʒ dʲ d̪ ej f fʲ h i iː j k kʰ kʷ l m mʲ m̩ n n̩ ow p pʰ pʲ pʷ s t tʃ tʰ tʲ "
    "tʷ t̪ v vʲ w z æ ç ð ŋ ɐ ɑ ɑː ɒ ɒː ɔj ə ɚ ɛ ɝ ɟ ɟʷ ɡ ɡʷ ɪ ɫ ɫ̩ ɱ ɲ ɹ ɾ ɾʲ ɾ̃ ʃ ʉ ʉː ʊ ʎ ʒ ʔ θ"
)
MFA = (
    "a aj aw aː b bʲ c cʰ cʷ d dʒ dʲ d̪ e ej eː f fʲ h i iː j k kp kʰ kʷ l m mʲ m̩ n o ow oː p pʰ pʲ "
    "pʷ s t tʃ tʰ tʲ tʷ t̪ u uː v vʲ w z æ ç ð ŋ ɐ ɑ ɑː ɒ ɒː ɔ ɔj ɖ ə əw ɚ ɛ ɛː ɜ ɜː ɝ ɟ ɟʷ ɡ ɡʷ ɪ "
    "ɫ ɲ ɹ ɾ ʃ ʈ ʈʲ ʈʷ ʉ ʉː ʊ ʋ ʎ ʒ θ"
)
UK_MFA = (
    "a aj aw b bʲ c cʰ cʷ d dʒ dʲ d̪ e ej f fʲ h i iː j k kʰ kʷ l m mʲ m̩ n n̩ p pʰ pʲ pʷ s t tʃ tʰ "
    "tʲ tʷ t̪ v vʲ vʷ w z ç ð ŋ ɐ ɑ ɑː ɒ ɒː ɔj ə əw ɛ ɛː ɜ ɜː ɟ ɟʷ ɡ ɡʷ ɪ ɫ ɫ̩ ɲ ɹ ʃ ʉ ʉː ʊ ʎ ʒ ʔ θ"
)
US_ARPA = " ".join(
    "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
    + [
        vowel + stress
        for vowel in "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
        for stress in "012"
    ]
)
ESPEAK = "ɹ t d k n l s ʃ tʃ ɐ ʌ ə ˈʌ ˈæ ˈiː i ˈɑːɹ ˈoʊ əl"
TIED = "b t d k l n s r t͡ʃ d͡ʒ ð ʌ ə ˈæ a e ɪ i u ɔ g"


def ipa(phones: str) -> IpaPhones:
    return IpaPhones(Vocabulary.from_phones(phones.split()))


@pytest.mark.parametrize(
    ("word", "heard", "written"),
    [
        ("cute", "k j ˈuː t", "cʰ ʉː t"),
        ("new", "n j ˈuː", "ɲ ʉː"),
        ("huge", "h j ˈuː dʒ", "ç ʉː dʒ"),
        ("queen", "k w ˈiː n", "cʷ iː n"),
        ("quote", "k w ˈoʊ t", "kʷ ow t"),
        ("twin", "t w ˈɪ n", "tʷ ɪ n"),
        ("key", "k ˈiː", "cʰ iː"),
        ("sky", "s k ˈaɪ", "s k aj"),
        ("school", "s k ˈuː l", "s k ʉː ɫ"),
        ("cat", "k ˈæ t", "cʰ æ t"),
        ("get", "ɡ ɛ t", "ɡ ɛ t"),
        ("paper", "p ˈeɪ p ɚ", "pʰ ej p ɚ"),
        ("pit", "p ˈɪ t", "pʰ ɪ t"),
        ("spin", "s p ˈɪ n", "s pʲ ɪ n"),
        ("table", "t ˈeɪ b əl", "tʰ ej b ə ɫ"),
        ("stop", "s t ˈɑː p", "s t ɑ p"),
        ("today", "t ə d ˈeɪ", "tʰ ə d ej"),
        ("water", "w ˈɔː ɾ ɚ", "w ɒː ɾ ɚ"),
        ("city", "s ˈɪ ɾ i", "s ɪ ɾʲ i"),
        ("lily", "l ˈɪ l i", "ʎ ɪ ʎ i"),
        ("about", "ɐ b ˈaʊ t", "ə b aw t"),
        ("hurry up", "ˈʌ p", "ɐ p"),
        ("bird", "b ˈɜː d", "b ɝ d"),
        ("born", "b ˈɔːɹ n", "b ɒ ɹ n"),
        ("boy", "b ˈɔɪ", "b ɔj"),
        ("action", "ˈæ k ʃ ə n", "æ c ʃ ə n"),
        ("dream", "d ɹ ˈiː m", "dʲ ɹ iː m"),
        ("near", "n ˈɪɹ", "ɲ ɪ ɹ"),
    ],
)
def test_american_words_as_mfa_writes_them(word, heard, written):
    assert ipa(US_MFA)(heard.split()) == (written.split(), [])


def test_the_inventory_decides():
    heard = "s ˈɪ ɾ i".split()
    # english_mfa has ɾ but not ɾʲ, and a flap is nearer to it than a t; the British set has none.
    assert ipa(MFA)(heard)[0] == "s ɪ ɾ i".split()
    assert ipa(UK_MFA)(heard)[0] == "s ɪ tʲ i".split()
    assert ipa(UK_MFA)("h ˈeə ɡ ˈəʊ k ˈɑː".split())[0] == "h ɛː ɡ əw kʰ ɑː".split()
    assert (ipa(US_MFA).voice, ipa(MFA).voice, ipa(UK_MFA).voice) == ("en-us", "en-us", "en")
    # A small corpus in which k was heard before front vowels alone.
    assert ipa("c ɑ ɹ")("k ˈɑːɹ".split()) == ("c ɑ ɹ".split(), [])
    assert ipa("pʰ ɑ ɹ")("ɑːɹ p".split()) == ("ɑ ɹ pʰ".split(), [])


def test_stress_length_and_ties():
    assert ipa(ESPEAK)("ˈʌ n d ə".split()) == ("ˈʌ n d ə".split(), [])
    assert ipa(ESPEAK)("ɐ k ˈɑːɹ".split()) == ("ɐ k ˈɑːɹ".split(), [])
    # Known in another stress, or with another length, or taken apart.
    assert ipa(ESPEAK)("ˈæ t iː".split()) == ("ˈæ t ˈiː".split(), [])
    assert ipa(ESPEAK)("l ˌæ d".split()) == ("l ˈæ d".split(), [])
    found = ipa(TIED)("tʃ ˈeɪ n dʒ ɡ ˈaɪ b ˈɔːɹ uː".split())
    assert found == ("t͡ʃ e ɪ n d͡ʒ g a ɪ b ɔ r u".split(), [])
    assert simple_phones("f ˈaɪɚ l ˌɔːɹ iː".split()) == "f ˈaɪ ɚ l ˌɔ ɹ iː".split()


def test_what_the_voice_does_not_have_is_named():
    assert ipa("ɹ s t ɛ")("m ˈɛ ʒ ɚ t m".split())[1] == ["m", "ʒ", "ɚ"]
    assert ipa(US_MFA)("s ˈɔ̃ ʁ".split())[1] == ["ɔ̃", "ʁ"]


def test_which_sets_are_taken_for_english():
    assert all(ipa(phones).is_english for phones in (US_MFA, MFA, UK_MFA, ESPEAK, TIED))
    german = (
        "a aj aw b c cʰ d f h iː j k kʰ l m n p pʰ s t ts tʰ tʃ v z ç ŋ œ ɐ ɔ ə ɛ ɟ ɡ ɪ ɲ ʁ ʃ ʊ ʏ"
    )
    spanish = "a b c d̪ e f i j k l m n o p r s t̪ tʃ u w x ç ð ŋ ɟ ɡ ɣ ɲ ɾ ʃ ʎ ʝ β θ"
    assert not ipa(german).is_english and not ipa(spanish).is_english


def test_every_common_word_is_read_in_all_of_the_sets():
    """With espeak-ng itself: a voice whose corpus held none of these words."""
    words = "knowledge zebra rhythm enquire jealous usually thirteen fluffy oyster sphinx vague"
    for phones in (US_MFA, MFA, UK_MFA, US_ARPA):
        guess = Guess(LexiconFrontend({"a": "ə"}), Vocabulary.from_phones(phones.split()))
        for word in words.split():
            assert guess(word), (word, guess.lacking)
        assert list(guess.read) == words.split() and not guess.lacking
    assert guess.read["zebra"] == "Z IY1 B R AH0"
    guess = Guess(LexiconFrontend({"a": "ə"}), Vocabulary.from_phones(US_MFA.split()))
    assert guess("sphinx") == "s fʲ ɪ ŋ k s".split()
