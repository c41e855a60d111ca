"""What an object store's error codes mean and what to do about them. Some servers send only a code: Ceph sends no message."""

_WRONG_SECRET = "the secret key is not the one that belongs to the access key. Correct AWS_SECRET_ACCESS_KEY, or the profile"
_UNKNOWN_KEY = "it does not know the access key. Correct AWS_ACCESS_KEY_ID or AWS_PROFILE, and check that the address is right"
_NO_RIGHT = ("the credentials are known but have no permission to do this there. Ask for the permissions that "
             "docs/how-to/object-store.md lists, or correct the address")
_TOKEN = "the session token is wrong or has expired. Log in again, or unset AWS_SESSION_TOKEN if the keys are permanent"
_CLOCK = "the clocks of this machine and the store differ by more than 15 minutes. Set this machine's clock"
_REGION = "the bucket is in another region. Set AWS_DEFAULT_REGION to the bucket's region"
_FULL = "the quota of the user or the bucket is used up. Free some (xft store gc --s3) or raise it"
_NOT_OFFERED = "this server does not support the request"

MEANINGS = {
    "SignatureDoesNotMatch": _WRONG_SECRET,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "AccessDenied": _NO_RIGHT,
    "AllAccessDisabled": _NO_RIGHT,
    "Forbidden": _NO_RIGHT,
    "403": _NO_RIGHT,
    "UserSuspended": "the account of these credentials is suspended. Ask the administrator of the store",
    "AccountProblem": "the account of these credentials has a problem. Ask the administrator of the store",
    "ExpiredToken": _TOKEN,
    "InvalidToken": _TOKEN,
    "TokenRefreshRequired": _TOKEN,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidBucketName": "no bucket can have this name. Correct the address",
    "QuotaExceeded": _FULL,
    "MissingContentLength": "it needs every request's length at the start; a proxy in front of it may have removed it",
    "EntityTooLarge": "the file is larger than the store allows",
    "MethodNotAllowed": _NOT_OFFERED,
    "405": _NOT_OFFERED,
    "NotImplemented": _NOT_OFFERED,
    "501": _NOT_OFFERED,
}
NOT_OFFERED = frozenset(code for code, meaning in MEANINGS.items() if meaning is _NOT_OFFERED)


def explanation(code: str, message: str | None) -> str:
    """Explain the refusal in a sentence: ours for a known code, else the server's message and where to look."""
    if code in MEANINGS:
        return f"{code or 'no code'}: {MEANINGS[code]}."
    said = f": {message.strip().rstrip('.')}" if message and message.strip() else ", without a message"
    return (f"{code or 'an error without a code'}{said}. Check the credentials (AWS_ACCESS_KEY_ID and its companions, or "
            "AWS_PROFILE), whether they are still valid, and their permissions there (docs/how-to/object-store.md).")
