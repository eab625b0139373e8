"""A curation whose crawl lies in a bucket: a real S3 server (moto's) that checks credentials and signatures."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest
import s3fs
import yaml

SERVE = """
from moto.server import ThreadedMotoServer
import sys
server = ThreadedMotoServer(port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
OWN = {"attempts", "ledger", "config.yaml", "provenance.json", "metrics.jsonl", "finished", "funnel.json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The server's URL, and the only credentials that it accepts; the bucket `crawls` is there."""
    log = tmp_path_factory.mktemp("s3") / "log"
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "1000"}  # until the one user there is has been made
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        until_it_answers(url)
        yield url, make_user(url)
    finally:
        process.kill()
        process.wait()


def until_it_answers(url: str) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError("the server did not start")


def make_user(url: str) -> dict[str, str]:
    given = {"region_name": "us-east-1", "endpoint_url": url, "aws_access_key_id": "x", "aws_secret_access_key": "x"}
    session = botocore.session.get_session()
    session.create_client("s3", **given).create_bucket(Bucket="crawls")
    users = session.create_client("iam", **given)
    users.create_user(UserName="curator")
    users.put_user_policy(UserName="curator", PolicyName="s3", PolicyDocument=json.dumps(ANYTHING))
    key = users.create_access_key(UserName="curator")["AccessKey"]
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(request, timeout=5).close()  # from here on every request is checked
    return dict(zip(NAMES, (key["AccessKeyId"], key["SecretAccessKey"]), strict=True))


@pytest.fixture
def environment(server: tuple[str, dict[str, str]], tmp_path: Path) -> dict[str, str]:
    """What a shell would hold: the right credentials in the usual variables, and no file of anyone's."""
    url, credentials = server
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    files = {"AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    return (
        clean
        | files
        | {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true", "OMP_NUM_THREADS": "1"}
        | credentials
    )


def upload(folder: Path, place: str, environment: dict[str, str]) -> None:
    known = dict(zip(("key", "secret"), (environment[name] for name in NAMES), strict=True))
    bucket = s3fs.S3FileSystem(endpoint_url=environment["AWS_ENDPOINT_URL"], **known)
    bucket.put(str(folder), place, recursive=True)


def outputs(run: Path) -> dict[str, bytes]:
    files = [path for path in run.rglob("*") if path.is_file() and path.relative_to(run).parts[0] not in OWN]
    found = {str(path.relative_to(run)): path.read_bytes() for path in files}
    manifest = json.loads(found["export/manifest.json"])
    del manifest["fingerprint"], manifest["source"]  # of the inputs: where they lie is in both
    return found | {"export/manifest.json": json.dumps(manifest).encode()}


def test_a_bucket_gives_the_export_of_a_disk_and_no_file_holds_a_credential(tools, environment, curate, tmp_path):
    tools.small_crawl(tmp_path / "raw", shards=2, per_shard=6)
    upload(tmp_path / "raw", "crawls/photos", environment)
    tree = tools.recipe(tmp_path / "raw")
    curate(tree, out="here")
    tree["curation"]["source"]["path"] = "s3://crawls/photos"
    (tmp_path / "there.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    words = ["curate", "run", str(tmp_path / "there.yaml"), "--out", str(tmp_path / "there")]
    command = [sys.executable, "-m", "megavlm.platform.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "there") == outputs(tmp_path / "here")
    assert any(name.endswith(".tar") for name in outputs(tmp_path / "there"))
    written = {path: path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file()}
    for value in (environment[name] for name in NAMES):
        assert not [path for path, data in written.items() if value.encode() in data]
        assert value not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("place", "changed", "says"),
    [
        ("s3://gone/photos", {}, "no .tar shards in 's3://gone/photos'"),
        ("s3://crawls/photos", {NAMES[0]: "AKIANOBODY"}, "PermissionError"),
        ("s3://crawls/photos", {NAMES[1]: secrets.token_hex(20)}, "PermissionError"),
        ("s3://crawls/photos", dict.fromkeys(NAMES), "NoCredentialsError"),
    ],
)
def test_a_place_that_cannot_be_read_is_one_error_before_anything_runs(
    tools, environment, curate, tmp_path, monkeypatch, place, changed, says
):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | changed).items():
        if name.startswith("AWS_") and value is not None:
            monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # of whoever looked with other credentials
    tree = tools.recipe(Path("unused"))
    tree["curation"]["source"]["path"] = place
    error = curate(tree, code=2)["error"]
    s3fs.S3FileSystem.clear_instance_cache()
    assert says in error["what"] and "\n" not in error["what"]
    assert error["where"] in (place, "curation.source.path") and error["fix"]
    assert not (tmp_path / "run" / "ingest").exists() and not (tmp_path / "run" / "ledger" / "shards.json").exists()
    assert not any(value and value in str(error) for value in changed.values())
