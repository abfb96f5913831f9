"""
Why S3 failed, in words that are safe to show. Pure: exceptions are told apart by the names of their classes.

What S3's messages hold (string to sign, key id, request) stays out; status and error code are enough to act on.
"""

import re

# By name, so that botocore need not be imported. The first name found in a class's own line of ancestors counts.
REASONS = {
    "SSLError": "its certificate was not accepted",
    "ConnectTimeoutError": "it could not be reached in time",
    "ReadTimeoutError": "it did not answer in time",
    "ProxyConnectionError": "the proxy could not be reached",
    "ConnectionClosedError": "it closed the connection",
    "ResponseStreamingError": "it closed the connection",
    "IncompleteReadError": "it closed the connection",
    "ConnectionError": "it could not be reached",
    "HTTPClientError": "the connection to it failed",
    "ResponseParserError": "its answer could not be understood",
    "ParamValidationError": "the bucket name or the key is not valid",
    "InvalidRegionError": "the region is not valid",
    "NoCredentialsError": "the credentials are missing",
    "PartialCredentialsError": "the credentials are missing",
    "RetriesExceededError": "the connection to it failed",
    "ValueError": "the endpoint is not valid",
    "OSError": "the file can no longer be read",
    "BotoCoreError": "the S3 client failed",
    "Boto3Error": "the S3 client failed",
    "Exception": "the S3 client failed",
}
HINTS = {
    "SignatureDoesNotMatch": "the secret key is wrong, or the region",
    "InvalidAccessKeyId": "the access key is unknown there",
    "NoSuchBucket": "there is no bucket of this name",
    "AccessDenied": "these credentials may not do it",
    "RequestTimeTooSkewed": "the clock of this worker is wrong",
    "NoSuchKey": "there is no such object",
    "404": "there is no such object",
}
_CODE = re.compile(r"[A-Za-z0-9.]{1,64}")


def reason(exc: BaseException) -> str:
    """
    Say why S3 failed: HTTP status and error code when it answered, never what its message holds.
    """
    for cause in (exc, exc.__cause__, exc.__context__):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "?")
            code = str(response.get("Error", {}).get("Code", ""))
            code = code if _CODE.fullmatch(code) else "unknown"
            return f"HTTP {status} {code}" + (f": {HINTS[code]}" if code in HINTS else "")
    return next(REASONS[kind.__name__] for kind in type(exc).__mro__ if kind.__name__ in REASONS)
