"""The version of the server and of both SDKs. The package's metadata reads it here."""

__version__ = "0.1.0"
