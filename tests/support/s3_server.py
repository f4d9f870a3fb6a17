"""A real S3 server (moto's) on loopback, with the environment that leads the AWS tools to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server() -> Iterator[str]:
    """The server's address, which is in the environment too while the server runs."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        moto.start()
        host, port = moto.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        yield f"http://{host}:{port}"
        moto.stop()


def objects(server: str, bucket: str) -> dict[str, int]:
    """Key -> bytes of everything in a bucket."""
    client = boto3.client("s3", endpoint_url=server)
    return {item["Key"]: item["Size"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", [])}
