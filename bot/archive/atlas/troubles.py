"""What goes wrong with Atlas, in words: what happened, whether it may pass, and what to do.

MongoDB's codes tell some troubles apart and its wording the others: the search server behind Atlas
sends no codes of its own. `docs/atlas.md` lists the same sentences for whoever meets them.
"""

import re
from dataclasses import dataclass, replace

from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)

from bot.archive.port import ArchiveError, ForbiddenError


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What went wrong.

    Attributes:
        sentence: For whoever runs this.
        passing: Whether trying again may help without anybody doing anything.
        hopeless: Whether all other work would meet it as well, for as long as nobody acts.
        forbidden: Whether it is a matter of rights.
    """

    sentence: str
    passing: bool = False
    hopeless: bool = False
    forbidden: bool = False

    def error(self) -> ArchiveError:
        """The trouble, to be raised."""
        return ForbiddenError(self.sentence) if self.forbidden else ArchiveError(self.sentence)


# Codes that name servers which stop, step down or drown. The driver tries most of these again
# once; the two of an overloaded search server (462, 489) it does not know.
_PASSING = frozenset(
    {6, 7, 43, 50, 64, 89, 91, 112, 134, 175, 189, 202, 262, 462, 489, 9001, 10107, 11600, 11602}
    | {13435, 13436}
)
_NO_SEARCH_SENTENCE = (
    "This MongoDB server has no Vector Search: use a cluster in Atlas, or the image "
    "mongodb/mongodb-atlas-local on your own machine."
)
_LOGIN_SENTENCE = (
    "Atlas refuses the user or the password: check both in MAPSEEK_ATLAS_URI (special characters "
    "are written as %XX) and under Database Access in Atlas."
)
_QUOTA_SENTENCE = (
    "The Atlas cluster is full, so nothing more is stored: free some space or take a larger "
    "cluster. Searching still works."
)
_RIGHTS_SENTENCE = (
    "The Atlas user may not do this ({}): give it the role readWrite on the database, under "
    "Database Access in Atlas."
)
_HOST_SENTENCE = (
    "There is no host of that name: check the host in MAPSEEK_ATLAS_URI against Connect > Drivers "
    "on the cluster's page, and this machine's DNS."
)
_AWAY_SENTENCE = "Atlas does not answer: {}."
_ALLOWED_SENTENCE = (
    "Atlas closes the connection before it begins: add this machine's address under Network Access "
    "in Atlas."
)
_PAGE_SENTENCE = (
    "This MongoDB server does not know the command ({}): in Atlas, do it on the cluster's page; "
    "other servers have no Vector Search."
)
_BUILDING_SENTENCE = (
    "The vector search index is still being built: `mapseek archive status` shows how far it is."
)

# What a code means where the words say nothing; the words go into the braces.
_CODES: dict[int, Trouble] = {
    13: Trouble(sentence=_RIGHTS_SENTENCE, hopeless=True, forbidden=True),
    18: Trouble(sentence=_LOGIN_SENTENCE, hopeless=True),
    26: Trouble(sentence="The collection does not exist yet: run `mapseek archive init`."),
    50: Trouble(sentence="Atlas took longer than MAPSEEK_ATLAS_TIMEOUT_S allows.", passing=True),
    59: Trouble(sentence=_PAGE_SENTENCE, forbidden=True),
    8000: Trouble(sentence="Atlas refuses: {}.", hopeless=True),
    **dict.fromkeys(
        (115, 31082, 40324, 6047401), Trouble(sentence=_NO_SEARCH_SENTENCE, hopeless=True)
    ),
}

# Words of mongod, mongot and Atlas, in the order in which they are looked for.
_WORDS: tuple[tuple[str, Trouble], ...] = (
    (
        r"bad auth|authentication failed",
        Trouble(sentence=_LOGIN_SENTENCE, hopeless=True),
    ),
    (r"space quota", Trouble(sentence=_QUOTA_SENTENCE, hopeless=True)),
    (
        r"is not allowed to do action",
        Trouble(sentence=_RIGHTS_SENTENCE.format("Atlas says so"), hopeless=True, forbidden=True),
    ),
    # What Atlas says to commands that small clusters do not have.
    (
        r"is not allowed or the syntax is incorrect|CMD_NOT_ALLOWED|not allowed in this atlas tier",
        Trouble(sentence=_PAGE_SENTENCE.format("Atlas does not allow it here"), forbidden=True),
    ),
    (
        r"Search Index Management service|connecting to \S+:28000",
        Trouble(
            sentence="The search server behind MongoDB is down; it may come back by itself.",
            passing=True,
        ),
    ),
    (
        r"requires additional configuration|only allowed on MongoDB Atlas",
        Trouble(sentence=_NO_SEARCH_SENTENCE, hopeless=True),
    ),
    (
        r"INITIAL_SYNC|not initialized|state (PENDING|BUILDING)",
        Trouble(sentence=_BUILDING_SENTENCE),
    ),
    (
        r"indexed with \d+ dimensions but queried with",
        Trouble(
            sentence="The vector search index is for vectors of another length than the model "
            "makes: run `mapseek archive init`, which makes one for this length beside it."
        ),
    ),
    (
        r"needs to be indexed as",
        Trouble(
            sentence="The vector search index lacks a field that searches filter by: run "
            "`mapseek archive init`, which brings it up to date."
        ),
    ),
    (
        r"(is not|must be) indexed as \"?vector",
        Trouble(
            sentence="The search index has no vectors of this collection: `mapseek archive status` "
            "tells what it has, `mapseek archive init` makes the right one."
        ),
    ),
    (
        r"maximum number of (FTS|search) indexes|limit of .* search indexes",
        Trouble(
            sentence="This cluster's size allows no more search indexes: drop one that is not "
            "needed (free clusters allow 3)."
        ),
    ),
)


def trouble_of(code: int, reason: str) -> Trouble:
    """What a MongoDB error means.

    Args:
        code: The error's code; 0 where there is none.
        reason: Its words.
    """
    for pattern, trouble in _WORDS:
        if re.search(pattern, reason, re.IGNORECASE):
            return trouble
    words = _brief(reason)
    if code in _CODES:
        return replace(_CODES[code], sentence=_CODES[code].sentence.format(words))
    if is_passing(code):
        return Trouble(sentence=_AWAY_SENTENCE.format(words), passing=True)
    return Trouble(sentence=f"Atlas refuses: {words} (code {code}).")


def is_passing(code: int) -> bool:
    """Whether an error of this code may pass by itself."""
    return code in _PASSING


def trouble_of_error(error: PyMongoError) -> Trouble:
    """What an error of the driver means."""
    if isinstance(error, OperationFailure):
        trouble = trouble_of(error.code or 0, _reason(error))
        labelled = any(map(error.has_error_label, ("RetryableWriteError", "RetryableError")))
        return replace(trouble, passing=trouble.passing or (labelled and not trouble.hopeless))
    text = str(error)
    for pattern, kinds, trouble in _DRIVER:
        if isinstance(error, kinds) and re.search(pattern, text, re.IGNORECASE):
            return replace(trouble, sentence=trouble.sentence.format(_brief(text)))
    if isinstance(error, ConfigurationError):
        return Trouble(sentence=_unreadable(error), hopeless=True)
    if error.timeout and not isinstance(error, ServerSelectionTimeoutError):
        return _CODES[50]
    if isinstance(error, ConnectionFailure):
        return Trouble(sentence=_AWAY_SENTENCE.format(_brief(text)), passing=True)
    return Trouble(sentence=f"Atlas failed: {_brief(text)}.")


# What the driver itself meets: the first that fits counts.
_DRIVER: tuple[tuple[str, type[PyMongoError], Trouble], ...] = (
    (
        r"timed out|lifetime|SERVFAIL|no nameservers",
        ConfigurationError,
        Trouble(sentence="DNS does not answer: check this machine's.", passing=True),
    ),
    (
        r"DNS|does not exist|does not contain",
        ConfigurationError,
        Trouble(sentence=_HOST_SENTENCE, hopeless=True),
    ),
    # A name that is gone for a moment is more often a resolver that is away than a typing error.
    (
        r"getaddrinfo|name or service|nodename|name resolution|no address associated",
        ConnectionFailure,
        Trouble(sentence=_HOST_SENTENCE, passing=True),
    ),
    (
        r"tlsv1 alert internal error",
        ConnectionFailure,
        Trouble(sentence=_ALLOWED_SENTENCE, passing=True),
    ),
    (
        r"certificate verify failed|wrong version number",
        ConnectionFailure,
        Trouble(sentence="TLS to Atlas fails: {}.", hopeless=True),
    ),
    (
        r"",
        WaitQueueTimeoutError,
        Trouble(
            sentence="All connections to Atlas are busy: MAPSEEK_ATLAS_CONNECTIONS allows more.",
            passing=True,
        ),
    ),
)


def unconfigured(error: Exception) -> ArchiveError:
    """For a connection string that cannot be read."""
    return ArchiveError(_unreadable(error))


def _unreadable(error: Exception) -> str:
    # Other errors may quote a part of the string, and that part may be the password.
    known = isinstance(error, InvalidURI) and re.search(r"scheme|escaped", str(error))
    why = f" ({_brief(str(error))})" if known else ""
    return (
        f"MAPSEEK_ATLAS_URI is no connection string{why}: copy it from Connect > Drivers on the "
        "cluster's page, with USER and PASSWORD filled in."
    )


def _reason(error: OperationFailure) -> str:
    details = error.details
    return str(details.get("errmsg", "")) if details else str(error).partition(", full error")[0]


def _brief(text: str) -> str:
    """The first sentence of an error: what follows describes the topology, or quotes the reply."""
    words = re.split(r", full error|, Timeout: | \(configured timeouts|, Topology", text)[0]
    return words.strip()[:200].rstrip(".")
