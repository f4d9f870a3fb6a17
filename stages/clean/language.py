"""Is a text in the expected language? By scripts and function words, without a model.

datatrove's language filters load fastText models from the network. Here the most common function words decide: they
make up 20-50% of running prose in every language below, whatever it is about. Code, formulae and addresses are removed
first, and a text with little prose left is not judged. A text is foreign when most of its letters are in another
script, or it has more function words of another language, or (for languages that are not listed) hardly any of its
own. docs/cleaning.md has the measurements, also of py3langid and lingua.
"""

import re
from collections import Counter

import regex
from pydantic import Field, field_validator

from cosmopedia.core.params import Params

# Frequent in the language, not a word of English (except in the first list), and longer than one letter.
FUNCTION_WORDS = {
    "en": "the of and to that is was for with as are this by be from at which have had not but they his her she it"
    " you their were been has would there when who will more if can about into than them only other some could"
    " these may then what any such because between after over through where each how its during your we our he"
    " or",
    "de": "der und das ist nicht von ein eine einer eines einem einen den dem des sich mit auf für auch wird werden"
    " sind nach bei aus über wie nur oder aber kann durch zum zur wenn noch haben sie wir ich ihr sein seine"
    " vor bis unter zwischen dass daß diese dieser dieses als im zu es er hatte wurde wurden einfach sehr mehr",
    "fr": "le la les des du de et est une un que qui dans pour sur avec au aux par ce cette ces il elle ils elles"
    " nous vous ne pas plus sont être avoir ont était mais ou où leur leurs son sa ses se comme tout tous fait"
    " deux entre aussi même sans peut donc si lui après avant très",
    "es": "el la los las de del que en un una unos unas es por con para se su sus al lo como más pero este esta"
    " estos estas ese esa eso son fue era ser está están hay muy también cuando donde entre sobre sin hasta"
    " desde todo todos ya porque si le les nos han había puede cada",
    "it": "il lo la gli le di del della dei delle degli che un una per con non si nel nella nei nelle da dal dalla"
    " al alla ai alle più anche sono era questo questa questi queste ma se suo sua loro essere hanno quando"
    " dove tra fra tutto tutti molto ogni perché così sulla sul",
    "pt": "os de da dos das que em um uma por com para não se na nos nas ao pelo pela como mais mas foi são ser está"
    " este esta isso seu sua seus suas também quando onde entre sobre até muito já ou ele ela eles tem há pode"
    " cada depois sem",
    "nl": "de het een en van dat niet te zijn op voor met aan deze dit er als ook om naar bij uit maar wordt worden"
    " werd heeft hebben kan kunnen nog wel meer dan zich onder ze hij wij jullie hun geen zoals tussen tijdens"
    " veel omdat",
    "sv": "och att det som en är av för på med den till inte om har de ett var jag så från kan vi när eller också"
    " sig där efter vid ska skulle mycket detta denna dessa hade blev mellan utan han hon deras",
    "da": "og det som en er af på med den til ikke om har de et var jeg så fra kan vi når eller også sig der efter"
    " ved skal ville meget dette denne disse havde blev mellem uden han hun deres være",
    "pl": "na się że nie jest jak po co tak za od przez ale są dla przy oraz lub być był była było czy gdy tylko"
    " może można które który która jego jej ich tym tego jako także między już",
    "cs": "na se že je ve pro za jsou nebo ale jako po podle také která který které od při aby být byl byla bylo až"
    " jen tak ještě mezi může jejich jeho svou protože když",
    "tr": "ve bir bu da de için ile çok daha olarak en gibi kadar olan sonra ama veya ne şey değil var ki mi göre"
    " ancak tarafından olduğu arasında bütün nasıl çünkü hem ise",
    "id": "yang dan di dengan untuk pada dari ini itu adalah ke dalam tidak akan oleh sebagai juga atau dapat mereka"
    " telah karena bisa ada lebih saat seperti kita kami tersebut sudah harus antara setelah secara",
    "vi": "và của là có được cho các một không những trong người với này đã để khi như từ ra đến về nhiều cũng vào"
    " phải nhưng trên năm thì bị sẽ còn lại theo",
    "ro": "și de la în cu pe un că nu se este din pentru sau mai care ce sunt au fost prin între după fi acest"
    " această aceste ca sa lui dar când foarte toate poate",
    "fi": "ja ei että se oli hän ovat mutta joka kun myös niin kuin voi sen tai jos ole olla mukaan sekä hyvin nyt"
    " vain ne tämä tämän jotka siitä",
    "hu": "az és hogy nem egy van ez meg volt már csak de mint vagy még ki el azt minden sem fel lehet pedig amely"
    " ezt után között nagyon",
}
SCRIPTS = {
    "Arabic": "ar fa ur",
    "Bengali": "bn",
    "Cyrillic": "ru uk bg sr",
    "Devanagari": "hi mr ne",
    "Greek": "el",
    "Han": "zh",
    "Hangul": "ko",
    "Hebrew": "he",
    "Thai": "th",
}  # of languages that are not written in Latin letters; of those only the script is looked at
SCRIPT_OF = {code: script for script, codes in SCRIPTS.items() for code in codes.split()}
OPENER = re.compile(r"```|\$\$|\\\[|\\\(|\\begin\{(\w{1,40}\*?)\}")
CLOSER = re.compile(r"```|\$\$|\\\]|\\\)|\\end\{\w{1,40}\*?\}")
CLOSER_OF = {"```": "```", "$$": "$$", r"\[": r"\]", r"\(": r"\)"}
NO_PROSE = re.compile(
    r"`[^`\n]+`|\$[^$\n]{1,300}\$|\\[A-Za-z]+"  # code, formulae
    r"|https?://\S+|(?<!\S)[^\s@]{1,100}@\S+|</?[A-Za-z][^<>\n]{0,200}>"  # addresses, mark-up
)
WORD = regex.compile(r"[\p{L}\p{M}]+")  # with the vowel signs of Indian scripts
LANGUAGES_OF: dict[str, list[str]] = {}  # word -> the languages in which it is a function word
for _language, _words in FUNCTION_WORDS.items():
    for _word in _words.split():
        LANGUAGES_OF.setdefault(_word, []).append(_language)


class LanguageRule(Params):
    """What it takes to be in the expected language."""

    expected: str  # ISO 639-1
    min_letters: int = Field(ge=1)  # of prose; a text with fewer is not judged
    min_script: float = Field(ge=0, le=1)  # share of letters in the language's script
    min_function_words: float = Field(ge=0, le=1)  # of the expected language, as a share of words
    min_other_words: float = Field(ge=0, le=1)  # of another language that has more of them; fewer prove nothing
    min_distinct_words: int = Field(ge=1)  # different ones of another; vocabulary lists have articles alone

    @field_validator("expected")
    @classmethod
    def _known(cls, expected: str) -> str:
        known = sorted([*FUNCTION_WORDS, *SCRIPT_OF])
        if expected not in known:
            raise ValueError(f"no rule for {expected!r}; known: {', '.join(known)}")
        return expected


def foreign(text: str, rule: LanguageRule) -> dict[str, object] | None:
    """Why a text is not in the expected language, as evidence; None when it is, or has too little prose to say."""
    words = WORD.findall(prose(text).lower())
    letters = "".join(words)
    if len(letters) < rule.min_letters:
        return None
    script = SCRIPT_OF.get(rule.expected, "Latin")
    share = script_share(letters, script)
    if share < rule.min_script:
        return {"script": script, "share": round(share, 4)}
    if script != "Latin":
        return None
    shares = function_words(words)
    own = shares.pop(rule.expected)
    other = max(shares, key=lambda language: shares[language])
    distinct = sum(other in LANGUAGES_OF.get(word, ()) for word in set(words))
    if shares[other] > own and shares[other] >= rule.min_other_words and distinct >= rule.min_distinct_words:
        return {"language": other, "share": round(shares[other], 4), rule.expected: round(own, 4)}
    if own < rule.min_function_words:
        return {rule.expected: round(own, 4)}
    return None


def prose(text: str) -> str:
    """`text` without code, formulae, addresses and mark-up, in time that is linear in its length."""
    last = {match.group(): match.start() for match in CLOSER.finditer(text)}  # no closer is looked for in vain
    kept: list[str] = []
    start = position = 0
    while (opener := OPENER.search(text, position)) is not None:
        closer = CLOSER_OF.get(opener.group(), rf"\end{{{opener[1]}}}")
        position = opener.end()
        if last.get(closer, -1) >= position:
            end = text.index(closer, position) + len(closer)
        elif closer == "```":  # code that is not closed
            end = len(text)
        else:
            continue
        kept.append(text[start : opener.start()])
        start = position = end
    return NO_PROSE.sub(" ", " ".join([*kept, text[start:]]))


def script_share(letters: str, script: str) -> float:
    """The share of letters that are of a Unicode script."""
    if letters.isascii():
        return float(script == "Latin")
    return sum(map(len, regex.findall(rf"\p{{{script}}}+", letters))) / len(letters)


def function_words(words: list[str]) -> dict[str, float]:
    """The share of words that are function words, by language."""
    counts = dict.fromkeys(FUNCTION_WORDS, 0)
    for word, count in Counter(words).items():
        for language in LANGUAGES_OF.get(word, ()):
            counts[language] += count
    return {language: count / len(words) for language, count in counts.items()}
