"""Formats of strings, each as a pattern that all who check it agree with: what only some take, it leaves out. Pure."""

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_PAIR = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"(?:[0-9]{{2}}{_LEAP_PAIR}|{_LEAP_PAIR}00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = (
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_AMOUNT = "[0-9]{1,4}"
_CLOCK = f"(?:{_AMOUNT}H(?:{_AMOUNT}M(?:{_AMOUNT}S)?)?|{_AMOUNT}M(?:{_AMOUNT}S)?|{_AMOUNT}S)"
_DAYS = f"(?:{_AMOUNT}Y(?:{_AMOUNT}M(?:{_AMOUNT}D)?)?|{_AMOUNT}M(?:{_AMOUNT}D)?|{_AMOUNT}D)"
# Four of the longest have 251 characters; 253 may be.
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,60}[a-zA-Z0-9])?"
_HOSTNAME = f"{_LABEL}(?:[.]{_LABEL}){{0,3}}"
_BYTE = "(?:[0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
_IPV4 = f"(?:{_BYTE}[.]){{3}}{_BYTE}"
_WORD16 = "[0-9a-fA-F]{1,4}"
_IPV6 = (
    f"(?:(?:{_WORD16}:){{7}}{_WORD16}"
    + "".join(f"|(?:{_WORD16}:){{{before}}}(?::{_WORD16}){{1,{7 - before}}}" for before in range(1, 7))
    + f"|(?:{_WORD16}:){{1,7}}:|:(?::{_WORD16}){{1,7}}|::)"
)
_PATH_CHAR = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_URI = (
    f"[a-zA-Z][a-zA-Z0-9+.-]{{0,30}}:(?://(?:{_HOSTNAME}|\\[{_IPV6}\\])(?::[0-9]{{1,4}})?(?:/{_PATH_CHAR}*)*"
    f"|/?{_PATH_CHAR}+(?:/{_PATH_CHAR}*)*)(?:[?](?:{_PATH_CHAR}|[/?])*)?(?:[#](?:{_PATH_CHAR}|[/?])*)?"
)

PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_DAYS}(?:T{_CLOCK})?|T{_CLOCK}|{_AMOUNT}W)",
    "email": f"[a-zA-Z0-9!#$%&'*+/=?^_`{{|}}~-]{{1,30}}(?:[.][a-zA-Z0-9_+-]{{1,30}})?@{_HOSTNAME}",
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "uri": _URI,
}
