"""Redaction: secrets in configs and hyper-parameters are hidden, and what only sounds like one is not."""

import json
import os
import pathlib

import pytest
import torch
import yaml

from ckptd.catalog import CatalogOptions, build_catalog
from ckptd.catalog.describe import describe_checkpoint, describe_opened
from ckptd.catalog.description import DescribeRequest, Description, OpenedFiles, RedactionRules
from ckptd.catalog.redaction import REDACTED, Redactor

AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
HUB = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"
OPENAI = "sk-" + "proj-Ab3dEf6hIj9kLm2nOp5qRs8tUv"
JWT = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"


def redacted(value: object, *names: str) -> tuple[object, int]:
    redactor = Redactor(RedactionRules(names))
    return redactor.plain(value), redactor.count


@pytest.mark.parametrize(
    "name",
    [
        *("password", "db_password", "dbPassword", "PASSWORD", "password_2", "passwd", "passphrase", "smtp.password"),
        *("secret", "client_secret", "clientSecret", "aws_secret_access_key", "secret_key", "jwt_secret"),
        *(
            "api_key",
            "apiKey",
            "apikey",
            "API_KEY",
            "WANDB_API_KEY",
            "wandb_key",
            "private_key",
            "ssh-key",
            "access key",
        ),
        *("token", "hf_token", "auth_token", "hub_token", "accessToken", "access_token_prod", "bot_token"),
        *("credential", "credentials", "authorization", "connection_string", "pwd"),
    ],
)
def test_what_is_held_by_a_key_of_that_name_is_hidden(name: str) -> None:
    assert redacted({name: "hunter2-plain", "lr": 0.1}) == ({name: REDACTED, "lr": 0.1}, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tokenizer", "bert-base-uncased"), ("num_tokens", 30_000), ("max_tokens", "4096"), ("token_dim", 512)),
        *(("token", "<s>"), ("token", True), ("pad_token", "[PAD]"), ("cls_token", "<cls>"), ("mask_token", "mask")),
        *(("eos_token", "<|endoftext|>"), ("class_token", True), ("use_auth_token", False), ("token_type", "word")),
        *(("key", "value"), ("key_dim", 64), ("num_keys", 8), ("keys", "image,label"), ("monitor_key", "val/hmean")),
        *(("secretary", "bob"), ("password_file", "/run/secrets/db"), ("private", True), ("author", "alice")),
        *(("api_key", None), ("api_key", ""), ("api_key", "${oc.env:WANDB_API_KEY}"), ("pwd", "/srv/alice/run")),
        *(("tokens_per_second", 1234.5), ("state_dict_key", "model"), ("passes", 3), ("credits", "all of us")),
        *(("name", "sk-learn-random-forest-baseline"), ("name", "hf_internal_testing_tiny_random_bert")),
        *(("url", "https://example.org/a:b@c"), ("git", "git@github.com:team/ocr.git"), ("time", "10:20:30")),
        *(
            ("override", "model.token_dim=512"),
            ("override", "+model.tokenizer=bert"),
            ("note", "basic classification_model"),
        ),
        *(("sha", "9fceb02d0ae598e95dc970b74767f19372d61af8"), ("dsn", "postgres://db.example/runs")),
    ],
)
def test_what_only_sounds_like_a_secret_is_shown(name: str, value: object) -> None:
    assert redacted({name: value}) == ({name: value}, 0)


@pytest.mark.parametrize("secret", [AWS, GITHUB, HUB, OPENAI, JWT, PEM, "xoxb-" + "123456789012-abcdef"])
def test_a_secret_is_known_by_its_form_wherever_it_stands(secret: str) -> None:
    shown, count = redacted({"note": f"use {secret} here", "list": [1, [secret]], secret: "as a key"})
    assert secret not in json.dumps(shown)
    assert json.dumps(secret)[1:-1] not in json.dumps(shown)
    assert count >= 3
    assert shown["note"] == f"use {REDACTED} here"  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://alice:hunter2@db.example/runs", f"postgresql://{REDACTED}@db.example/runs"),
        ("https://:hunter2@proxy.example:3128", f"https://{REDACTED}@proxy.example:3128"),
        ("https://s3.example/x?X-Amz-Signature=0123abcd&part=2", f"https://s3.example/x?{REDACTED}&part=2"),
        ("+data.password=hunter2", f"+data.password={REDACTED}"),
        ("train.py --hub_token=abcdefgh --lr=0.1", f"train.py --hub_token={REDACTED} --lr=0.1"),
        ("Authorization: Bearer 0123456789abcdefghij", f"Authorization: {REDACTED}"),
    ],
)
def test_of_a_text_only_the_secret_part_is_hidden(text: str, shown: str) -> None:
    assert redacted([text]) == ([shown], 1)


def test_the_word_behind_a_flag_is_what_the_flag_names() -> None:
    assert redacted(["--password", "hunter2", "--lr", "0.1"]) == (["--password", REDACTED, "--lr", "0.1"], 1)


def test_everything_in_a_section_of_secrets_is_hidden() -> None:
    shown, count = redacted({"credentials": {"user": "alice", "parts": ["one", 123456], "on": True}})
    assert shown == {"credentials": {"user": REDACTED, "parts": [REDACTED, REDACTED], "on": True}}
    assert count == 3


def test_names_can_be_added() -> None:
    assert redacted({"Customer": "ACME", "data": {"customer": 12}}, "customer")[0] == {
        "Customer": REDACTED,
        "data": {"customer": 12},
    }


def test_redacting_again_changes_nothing_and_counts_nothing() -> None:
    once, _ = redacted({"password": "hunter2", "url": "ftp://a:b@c", "args": ["x.token=abcdef"]})
    assert redacted(once) == (once, 0)


@pytest.mark.parametrize(
    "text", ["eyJ-" * 250_000, "://" * 300_000, "a=" * 400_000, "x" * 1_000_000, "sk-" * 300_000, "bearer " * 150_000]
)
def test_a_megabyte_made_to_be_slow_is_gone_through(text: str) -> None:
    """It once took minutes: the limit of time of this test is what it would run into."""
    redacted({"note": text})


# ---- where descriptions are made -----------------------------------------------------------------------------------

SECRETS = (AWS, GITHUB, "hunter2", HUB, "letmein42")


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run whose every record holds a secret; returns its checkpoint."""
    (tmp_path / "exp" / "checkpoints").mkdir(parents=True)
    (tmp_path / "exp" / ".hydra").mkdir()
    (tmp_path / "exp" / "files").mkdir()
    path = tmp_path / "exp" / "checkpoints" / "best.ckpt"
    torch.save(
        {
            "state_dict": {"w": torch.ones(2)},
            "epoch": 1,
            "hyper_parameters": {"wandb": {"api_key": "hunter2"}, "lr": 1},
        },
        path,
    )
    (tmp_path / "exp" / ".hydra" / "config.yaml").write_text(
        yaml.safe_dump(
            {"exp_name": "kept", "model": {"head": {"name": "db", "params": {"note": AWS, "k": 50}}}, "t": GITHUB}
        )
    )
    (tmp_path / "exp" / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"model.decoder.token={HUB}"]))
    path.with_name("best.ckpt.metadata.yaml").write_text(
        yaml.safe_dump({"exp_name": "kept", "user": {"password": "letmein42", "note": "mine"}})
    )
    return path


def everything(description: Description) -> str:
    import msgspec

    return msgspec.json.encode(description).decode()


def test_a_description_holds_no_secret_of_any_source_and_counts_them(run: pathlib.Path) -> None:
    before = run.with_name("best.ckpt.metadata.yaml").read_bytes()
    description = describe_checkpoint(str(run))
    text = everything(description)
    assert [secret for secret in SECRETS if secret.lower() in text.lower()] == []
    assert description.redacted == 5
    assert description.config["model"]["head"]["params"] == {"note": REDACTED, "k": 50}
    assert description.inspection.hyper_parameters == {"wandb": {"api_key": REDACTED}, "lr": 1}
    assert description.user["user"] == {"password": REDACTED, "note": "mine"}
    assert run.with_name("best.ckpt.metadata.yaml").read_bytes() == before, "a person's file is theirs"


def test_without_redaction_everything_is_shown(run: pathlib.Path) -> None:
    config = os.open(run.parents[1] / ".hydra" / "config.yaml", os.O_RDONLY)
    checkpoint = os.open(run, os.O_RDONLY)
    try:
        description = describe_opened(
            DescribeRequest(
                checkpoint_path=str(run), relative_path=b"best.ckpt", config_name=b"config.yaml", redaction=None
            ),
            OpenedFiles(checkpoint=checkpoint, config=config),
        )
    finally:
        os.close(config)
        os.close(checkpoint)
    assert description.config["t"] == GITHUB
    assert description.redacted == 0


def test_a_sidecar_that_we_write_holds_no_secret_and_is_not_written_anew_for_it(run: pathlib.Path) -> None:
    run.with_name("best.ckpt.metadata.yaml").unlink()
    build_catalog(CatalogOptions(roots=(str(run.parents[1]),), write_sidecars=True))
    written = run.with_name("best.ckpt.metadata.yaml").read_text()
    assert REDACTED in written
    assert [secret for secret in SECRETS if secret.lower() in written.lower()] == []
    description = describe_checkpoint(str(run), root=str(run.parents[1]))
    assert description.sidecar == "ours"
    assert not description.outdated, "it says what is known, redacted"
