"""What personal data looks like: one pattern for each way a class is written, its check, and the words around it.

A pattern alone is doubtful where a plain number would fit it too; then only the words within NEAR characters make it
a hit (`needs`). Classes are the names that configuration, counts and the ledger use.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.privacy import checks

NEAR = 60

# Country codes that are top-level domains, without those that are mostly the endings of files and abbreviations.
_COUNTRIES = (
    "ac ad ae af ag al am ao aq ar at au aw az ba bb bd be bf bg bh bi bj bn bo br bs bt bw by bz ca cd cf cg ch ci"
    " ck cl cm cn co cr cu cv cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gd ge gf gg gh gi gl"
    " gn gp gq gr gt gu gw gy hk hn hr ht hu id ie il im iq ir it je jm jo jp ke kg kh ki km kn kr kw ky kz la lb"
    " lc li lk lr lt lu lv ly ma mc me mk mn mo mq mr mt mu mv mw mx my mz na nc ne nf ng ni nl np nr nz om pa"
    " pe pf pg ph pk pm pr pt pw qa re ro ru rw sa sb sc sd se sg si sk sl sm sn sr st su sv sx sy sz tc td tf tg th"
    " tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw io ai"
)
_GENERIC = (
    "com org net info biz edu gov mil int name pro app dev xyz online site shop store tech club cloud blog bank"
    " insurance email page world live life top work agency company group solutions services consulting law"
)
_TLD = "|".join(sorted((_COUNTRIES + " " + _GENERIC).split(), key=len, reverse=True))
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|DC|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR"
    "|PA|PR|RI|SC|SD|TN|TX|UT|VT|VA|VI|GU|WA|WV|WI|WY|AE|AP|AA|FM|MH|MP|PW|AS"
)
_STREET = (
    "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Trail|Way"
    "|Parkway|Pkwy|Circle|Cir|Highway|Hwy|Close|Crescent|Cres|Gardens|Grove|Mews|Row|Walk|Hill|Plaza|Alley"
)


# A place after a preposition, then a code that is no year.
_PLACE_AND_CODE = (
    r"(?<!\w)(?:in|at|near|to|from) (?:(?!(?:January|February|March|April|May|June|July|August|September|October"
    r"|November|December|Section|Chapter|Version|Table|Figure|Room|Building|Windows|Office|Article|Part|Page|Year|Fiscal"
    r"|Policy|Claim|Invoice|Order|Form|Step|Ticket|Case|Line|Error|Code|Port|Model|Unit|Item)\b)"
    r"[^\W\d_a-z][\w'’-]+ |(?:d[aeio]s?|la|le|los|las|of|am|an der|sur) ){1,4}"
    r"(?P<value>(?!(?:19|20)\d\d(?!\d))\d{4,6}(?:-\d{3,4})?|\d{3} \d{2})(?![\w%]|[.,]\d)"
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One way a class is written. needs: a word that must stand near.  refuses: what must not stand right before."""

    kind: str
    regex: "re.Pattern[str]"
    score: float
    check: checks.Check | None = None
    needs: "re.Pattern[str] | None" = None
    refuses: "re.Pattern[str] | None" = None
    own_hint: str = ""

    @property
    def hint(self) -> str:
        """Without which the pattern cannot fit, for a search over bytes that takes A for a."""
        return self.own_hint or _HINTS.get(self.kind, r"[0-9]")

    @property
    def hint_near(self) -> str | None:
        """The like of `hint` for `needs`."""
        if self.needs is None:
            return None
        words = self.needs.pattern.removeprefix(_NEAR_HEAD).removesuffix(_NEAR_TAIL)
        return re.sub(r"[^\x00-\x7f]", "..", words)  # two bytes each in UTF-8, in either case


_NEAR_HEAD, _NEAR_TAIL = r"(?i)(?<!\w)(?:", r")(?!\w)"
_HINTS = {
    "email": "@",
    "domain": r"[a-z0-9]\.[a-z]{2}|://|www\.",
    "card": r"[0-9][ -]?[0-9][ -]?[0-9][ -]?[0-9]",
    "ip": r"[0-9]\.[0-9]|:[0-9a-f]{0,4}:",
    "iban": r"[a-z]{2}[0-9]{2}",
    "ssn": r"[0-9]{3}[ .-]?[0-9]{2}",
    "phone": r"[0-9](?:[ ().\-/]{0,19}[0-9]){5}",
    "wallet": r"[a-z0-9]{14}",
    "vehicle": r"[a-z0-9]{17}",
    "secret": r"PRIVATE KEY|AKIA|ASIA|gh[pousr]_|github_pat_|sk-|xox|AIza|hf_|glpat-|eyJ",
}


def _words(*words: str) -> "re.Pattern[str]":
    return re.compile(_NEAR_HEAD + "|".join(words) + _NEAR_TAIL)


_NOT_A_NUMBER = re.compile(
    r"(?i)(?:\d[.,]|[#$€£/-]|(?:no|nr|number|id|ref|order|invoice|policy|claim|version|v)[.:# -]*)\Z"
)
_DATE = re.compile(r"(?:19|20)\d\d[-./ ]?[01]\d[-./ ]?[0-3]\d(?!\d)|[0-3]?\d[-./][01]?\d[-./](?:19|20)\d\d")
_PHONE_WORDS = _words(
    "phone",
    "tel",
    "telephone",
    "call",
    "called",
    "mobile",
    "cell",
    "fax",
    "contact",
    "dial",
    "ring",
    "whatsapp",
    "number",
    "reach",
    "text",
    "sms",
    "handy",
    "telefon",
    "hotline",
    "office",
    "desk",
    "home",
    "direct",
    "registered",
)


def patterns(regions: Sequence[str]) -> tuple[Pattern, ...]:
    """All patterns. regions: two-letter countries whose telephone numbers are known without a country code."""
    is_known = checks.phone_check(regions)

    def is_phone(text: str) -> bool:
        return not _DATE.match(text) and is_known(text)

    def may_be_phone(text: str) -> bool:
        return not _DATE.match(text) and 7 <= len(checks.digits_of(text)) <= 15

    return (
        Pattern("card", re.compile(r"(?<![\w.])\d(?:[ -]?\d){11,18}(?![\w-])"), 0.95, checks.is_card),
        Pattern("iban", re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}[A-Za-z0-9]{10,30}(?!\w)"), 0.95, checks.is_iban),
        Pattern(
            "iban",
            re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,4})?(?!\w)"),
            0.95,
            checks.is_iban,
        ),
        Pattern(
            "email",
            re.compile(
                r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
            ),
            0.95,
        ),
        Pattern("ssn", re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), 0.85, checks.is_ssn),
        Pattern(
            "ssn",
            re.compile(r"(?<![\w.-])\d{3}[ .]?\d{2}[ .]?\d{4}(?![\w-])"),
            0.7,
            checks.is_ssn,
            _words("ssn", "ssns", "social security", "social-security"),
        ),
        Pattern(
            "ip",
            re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"),
            0.8,
            checks.is_ip,
            None,
            re.compile(r"(?i)(?:version|release|v|section|§|chapter)[ .:]*$"),
        ),
        Pattern(
            "ip",
            re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"),
            0.8,
            lambda text: checks.is_ip(text) and len(text) > 5,
        ),
        Pattern(
            "phone",
            re.compile(r"(?<![\w+])\+\d[\d ().\-/]{6,20}\d(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?!\w)"),
            0.85,
            lambda text: 8 <= len(checks.digits_of(text)) <= 20,
            own_hint=r"\+[0-9]",
        ),
        Pattern(
            "phone",
            re.compile(
                r"(?<![\w.+/-])(?:(?:00|0|1)[ .\-]?)?(?:\(\d{2,5}\)|\d{2,5})[ .\-/]\d{2,4}(?:[ .\-]\d{2,4}){1,3}"
                r"(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?!\w|-\d)"
            ),
            0.6,
            is_phone,
            None,
            _NOT_A_NUMBER,
        ),
        Pattern(
            "phone",
            re.compile(r"(?<![\w.+/-])\(?\d[\d ().\-/]{5,18}\d(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?!\w|-\d)"),
            0.5,
            may_be_phone,
            _PHONE_WORDS,
            _NOT_A_NUMBER,
        ),
        Pattern(
            "domain",
            re.compile(
                rf"(?i)(?<![\w@.-])(?:https?://)?(?:[a-z0-9](?:[a-z0-9-]{{0,61}}[a-z0-9])?\.)+(?:{_TLD})(?![\w-]|\.\w)"
                r"(?::\d{1,5})?(?:/[^\s<>\"']*)?"
            ),
            0.5,
        ),
        Pattern("domain", re.compile(r"(?i)(?<![\w@])(?:https?://|www\.)[^\s<>\"'\x00]{3,2048}"), 0.6),
        Pattern(
            "zip",
            re.compile(
                r"(?i)(?<!\w)(?:zip|zip ?code|post ?code|postal ?code|plz)(?: is)?[: ]{1,3}"
                r"(?P<value>\d{3,6}(?:[ -][a-z0-9]{2,4})?|[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2}|[a-z]\d[a-z] ?\d[a-z]\d)(?!\w)"
            ),
            0.7,
            own_hint=r"zip|post|plz",
        ),
        Pattern(
            "zip",
            re.compile(
                r"(?<!\w)(?:[A-Z]{1,2}\d[A-Z\d]? \d[ABD-HJLNP-UW-Z]{2}|[ABCEGHJ-NPRSTVXY]\d[A-Z] \d[A-Z]\d)(?!\w)"
            ),
            0.6,
            own_hint=r"[0-9][a-z0-9]? [0-9][a-z]",
        ),
        Pattern(
            "zip",
            re.compile(r"(?m)^[ \t]*(?P<value>\d{3,6}(?:[ -]\d{2,4})?(?: [A-Z]{2})?)[ \t]*$"),
            0.5,
            None,
            _words("address", "apt", "suite", "street", "st", "road", "avenue", "box", "unit"),
        ),
        Pattern("zip", re.compile(_PLACE_AND_CODE), 0.5, own_hint=r" [0-9]{3}"),
        Pattern(
            "zip",
            re.compile(rf"(?<!\w)(?:{_STATES}),?\s+\d{{5}}(?:-\d{{4}})?(?!\w)"),
            0.6,
            own_hint=r"[0-9]{5}",
        ),
        Pattern(
            "zip",
            re.compile(r"(?<![\w.,$€£-])\d{5}(?:-\d{4})?(?![\w%,.-]\d|\w)"),
            0.5,
            None,
            _words("zip", "zip ?code", "zipcode", "post ?code", "postal code", "plz"),
        ),
        Pattern(
            "licence",
            re.compile(r"(?<!\w)[A-Z]{0,3}\d[A-Z0-9-]{5,15}(?!\w)"),
            0.5,
            None,
            _words(
                "driver'?s?'? licen[cs]e",
                "drivers? licen[cs]e",
                "driving licen[cs]e",
                "licen[cs]e number",
                "dl",
                "führerschein",
            ),
        ),
        Pattern(
            "passport",
            re.compile(r"(?<!\w)[A-Z]{0,2}\d{6,9}(?!\w)"),
            0.5,
            None,
            _words("passport", "reisepass"),
        ),
        Pattern(
            "birth",
            re.compile(
                r"(?<![\w/.-])(?:\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}|\d{1,2}(?:st|nd|rd|th)? (?:of )?"
                r"[A-Z][a-z]{2,9},? \d{4}|[A-Z][a-z]{2,9} \d{1,2}(?:st|nd|rd|th)?,? \d{4})(?![\w/-])"
            ),
            0.5,
            None,
            _words("born", "birth", "birthday", "birthdate", "dob", "d\\.o\\.b", "geboren"),
        ),
        Pattern(
            "account",
            re.compile(r"(?<![\w.-])\d{9}(?![\w-])"),
            0.6,
            checks.is_routing,
            _words("routing", "aba", "rtn"),
        ),
        Pattern(
            "account",
            re.compile(r"(?<![\w.-])\d(?:[ -]?\d){6,16}(?![\w-])"),
            0.45,
            None,
            _words("bank account", "account number", "account no", "acct", "kontonummer", "sort code"),
        ),
        Pattern(
            "national",
            re.compile(r"(?<![\w-])\d{3}[ -]?\d{3}[ -]?\d{4}(?![\w-])"),
            0.7,
            checks.is_nhs,
            _words("nhs"),
        ),
        Pattern(
            "national",
            re.compile(r"(?<!\w)[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}(?!\w)"),
            0.9,
            checks.is_nir,
            own_hint=r"[12] ?[0-9]{2} ?[0-9]{2} ?[0-9]",
        ),
        Pattern(
            "national",
            re.compile(r"(?<![\w-])\d{2} ?\d{3} ?\d{3} ?\d{3}(?![\w-])"),
            0.7,
            checks.is_tax_id,
            _words("steuer", "steuer-?id", "idnr", "tax id", "identifikationsnummer"),
        ),
        Pattern(
            "vehicle",
            re.compile(r"(?<!\w)[A-HJ-NPR-Z0-9]{17}(?!\w)"),
            0.6,
            checks.is_vin,
            _words("vin", "vehicle", "chassis"),
        ),
        Pattern(
            "wallet",
            re.compile(
                r"(?<!\w)(?:[13][1-9A-HJ-NP-Za-km-z]{25,34}|bc1[02-9ac-hj-np-z]{11,71}"
                r"|0x[0-9a-fA-F]{40})(?!\w)"
            ),
            0.8,
            checks.is_wallet,
        ),
        Pattern(
            "secret",
            re.compile(
                r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[^-]{0,8192}(?:-----END [A-Z ]{0,20}PRIVATE KEY-----)?"
            ),
            1.0,
        ),
        Pattern(
            "secret",
            re.compile(
                r"(?<![\w-])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{40,255}"
                r"|sk-[A-Za-z0-9_-]{20,200}|xox[abeprs]-[A-Za-z0-9-]{10,250}|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,60}"
                r"|glpat-[A-Za-z0-9_-]{20,50}|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000})"
                r"(?![\w-])"
            ),
            1.0,
        ),
        Pattern(
            "address",
            re.compile(
                rf"(?<!\w)\d{{1,6}}[A-Za-z]? (?:[NSEW]\.? )?(?:[A-Z][\w'’.-]* ){{1,4}}(?:{_STREET})\.?(?!\w)"
                r"(?:,? (?:Apt|Suite|Ste|Unit|Flat|#)\.? ?\w{1,6})?"
            ),
            0.6,
            own_hint=r"[0-9][a-z]? [a-z]",
        ),
        Pattern("address", re.compile(r"(?<!\w)P\.? ?O\.? ?Box \d{1,6}(?!\w)"), 0.6, own_hint=r"box [0-9]"),
    )
