"""Images, compose file and service unit say what this software understands; there is no engine here to run them."""

import re
from pathlib import Path

import pytest
import yaml

from atoll.node.cli.main import build_parser
from atoll.node.exit_codes import PERMANENT, ExitCode

DOCKER = Path(__file__).parents[2] / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
UNIT = (DOCKER / "atoll.service").read_text()


def commands():
    """Every `atoll` command line in the folder."""
    services = COMPOSE["services"]
    script = services["bootstrap"]["command"][0]
    found = [service["command"] for name, service in services.items() if name != "bootstrap"]
    found += [line.split() for line in re.findall(r"\batoll ((?:run|up)\b[^\n;]*)", script)]
    found += [re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1].strip("[]").replace('"', "").split(", ")]
    found += [re.search(r"^ExecStart=\S+/atoll (.*)$", UNIT, re.MULTILINE)[1].split()]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_line_parses(command):
    args = build_parser(command[0]).parse_args(command)
    assert callable(args.run)


def test_the_images_are_two_not_root_with_one_volume_an_init_and_a_health_check():
    assert re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE) == ["build", "cpu", "cuda"]
    assert re.search(r"^USER (?!0\b|root\b)\d+$", DOCKERFILE, re.MULTILINE)
    assert len(re.findall(r"^VOLUME ", DOCKERFILE, re.MULTILINE)) == 1
    assert '"tini"' in DOCKERFILE
    assert 'CMD ["atoll", "status"]' in DOCKERFILE


def test_what_the_image_copies_exists_and_is_not_ignored():
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (DOCKER.parent / source).exists()
            assert f"!{source}" in ignored


def test_compose_has_a_bootstrap_peer_and_three_volunteers_each_with_a_home_of_its_own():
    services = COMPOSE["services"]
    assert sorted(services) == ["bootstrap", "volunteer-1", "volunteer-2", "volunteer-3"]
    volumes = [volume for service in services.values() for volume in service["volumes"]]
    assert len({volume for volume in volumes if volume.endswith(":/var/lib/atoll")}) == 4
    assert {volume.partition(":")[0] for volume in volumes} == set(COMPOSE["volumes"])
    assert services["bootstrap"]["entrypoint"][0] == "tini"


def test_the_service_is_not_restarted_after_ends_that_a_restart_cannot_mend():
    listed = {int(code) for code in re.search(r"^RestartPreventExitStatus=(.*)$", UNIT, re.MULTILINE)[1].split()}
    assert listed == {int(code) for code in PERMANENT} | {ExitCode.USAGE, ExitCode.ALREADY_RUNNING}
