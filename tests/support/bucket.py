"""An emulator of Google Cloud Storage on the loopback, with one bucket, gs://bucket."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """Yields the environment by which this process and others find it; gcsfs remembers it, so one a process."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    url = f"http://127.0.0.1:{port}"
    try:
        # Without the token TensorStore looks for credentials.
        yield {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
    finally:
        server.stop()
