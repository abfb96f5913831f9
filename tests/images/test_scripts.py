"""
The scripts of the images, run with stand-ins for the programs they call: what they call, keep, refuse and return.
"""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "docker" / "bin"
BUILD = ROOT / "scripts" / "build-on-pod.sh"

Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """
    Return a folder that comes first on the PATH; `stub(folder, name, body)` puts a program into it.
    """
    folder = tmp_path / "stubs"
    folder.mkdir()
    return folder


def stub(folder: Path, name: str, body: str = "") -> None:
    """
    Make a program that notes its call in `calls` and then does `body`.
    """
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
    path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    """
    Return the calls of all stand-ins, in order.
    """
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def run(stubs: Path, tmp_path: Path) -> Run:
    """
    Return a function that runs a script with the stand-ins first on the PATH.
    """

    def ran(script: Path, *arguments: str, **environ: str) -> Ran:
        own = {
            "PATH": f"{stubs}:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
        }
        return subprocess.run(
            ["bash", str(script), *arguments],
            env={**own, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return ran


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """
    Return the folder of a ComfyUI, with an empty custom_nodes.
    """
    folder = tmp_path / "comfyui"
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "constraints.txt").write_text("torch==2.11.0\n")
    return folder


SCRIPTS = [
    BUILD,
    ROOT / "docker" / "start.sh",
    *sorted(BIN.iterdir()),
    *sorted((ROOT / "scripts").glob("*-image*")),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.name))
def test_script_parses_and_may_be_run(script: Path) -> None:
    """
    A shell can read each script, and its owner can run it.
    """
    first = script.read_text(encoding="utf-8").splitlines()[0]

    assert subprocess.run([first.split("/")[-1].split()[-1], "-n", script], check=False).returncode == 0
    assert os.access(script, os.X_OK)


# comfy-manager-set-mode


def test_set_mode_refuses_other_words(run: Run, comfyui: Path) -> None:
    """
    Not exactly one known mode is wrong use.
    """
    for arguments in ((), ("online",), ("public", "private")):
        assert run(BIN / "comfy-manager-set-mode", *arguments, COMFYUI_PATH=str(comfyui)).returncode == 64


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[default]\nMODE\n"),
        ("[default]\n", "[default]\nMODE\n"),
        ("[default]\nuv = False\nnetwork_mode=public\n", "[default]\nuv = False\nMODE\n"),
        (
            "[default]\n  network_mode   =   private\nuv = False\n[other]\nnetwork_mode = public\n",
            "[default]\nMODE\nuv = False\n[other]\nnetwork_mode = public\n",
        ),
        ("[default]\nuv = False\n[other]\nx = 1\n", "[default]\nuv = False\nMODE\n[other]\nx = 1\n"),
        ("[other]\nx = 1\n", "[other]\nx = 1\n[default]\nMODE\n"),
    ],
)
def test_set_mode_changes_one_line_of_one_section(run: Run, comfyui: Path, before: str, after: str) -> None:
    """
    The mode stands once in [default], every other line stays, and a second run changes nothing.
    """
    file = comfyui / "config.ini"
    file.write_text(before)

    for _ in range(2):
        ran = run(BIN / "comfy-manager-set-mode", "offline", COMFYUI_MANAGER_CONFIG=str(file))
        assert ran.returncode == 0, ran.stderr
        assert file.read_text() == after.replace("MODE", "network_mode = offline")


def test_set_mode_writes_the_new_place_and_the_old_one_if_it_is_there(run: Run, comfyui: Path) -> None:
    """
    Managers before and after ComfyUI 0.3.76 read different files.
    """
    new = comfyui / "user" / "__manager" / "config.ini"
    old = comfyui / "user" / "default" / "ComfyUI-Manager" / "config.ini"

    run(BIN / "comfy-manager-set-mode", "private", COMFYUI_PATH=str(comfyui))
    assert "network_mode = private" in new.read_text()
    assert not old.exists()

    old.parent.mkdir(parents=True)
    run(BIN / "comfy-manager-set-mode", "private", COMFYUI_PATH=str(comfyui))
    assert "network_mode = private" in old.read_text()


# comfy-node-install


def test_node_install_wants_a_name(run: Run, comfyui: Path) -> None:
    """
    Without a name it is wrong use.
    """
    assert run(BIN / "comfy-node-install", COMFYUI_PATH=str(comfyui)).returncode == 64


@pytest.mark.parametrize(
    "tool",
    [
        "exit 1",
        "exit 2",
        "echo \"An error occurred while installing 'bad'\"; exit 0",
        "echo \"Node 'bad@1.0.0' not found in the list\"; exit 0",
        "true",
    ],
)
def test_node_install_fails_in_each_way_a_pack_can_fail(
    run: Run, stubs: Path, comfyui: Path, tool: str
) -> None:
    """
    The failed pack is named, the others are installed all the same, and the build stops.
    """
    packs = comfyui / "custom_nodes"
    stub(stubs, "comfy", f'case "$*" in *bad*) {tool} ;; *) mkdir -p "{packs}/good" ;;\nesac')
    stub(stubs, "uv")

    ran = run(BIN / "comfy-node-install", "bad", "good", COMFYUI_PATH=str(comfyui))

    assert ran.returncode == 1
    assert "failed for the following nodes:\n  • bad\n" in ran.stderr
    assert (packs / "good").is_dir()


def test_node_install_holds_torch_and_fills_comfyui_s_environment(
    run: Run, stubs: Path, comfyui: Path
) -> None:
    """
    Every installer it calls is bound by the constraints and to ComfyUI's environment.
    """
    packs = comfyui / "custom_nodes"
    stub(stubs, "comfy", f'mkdir -p "{packs}/pack"; echo einops > "{packs}/pack/requirements.txt"')
    stub(stubs, "uv", f'echo "$UV_CONSTRAINT $PIP_CONSTRAINT $VIRTUAL_ENV" >> "{stubs}/bound"')

    ran = run(BIN / "comfy-node-install", "pack@1.2.3", COMFYUI_PATH=str(comfyui))
    bound = (stubs / "bound").read_text().split()

    assert ran.returncode == 0, ran.stderr
    assert f"uv pip install -r {packs}/pack/requirements.txt" in calls(stubs)
    assert set(bound) == {str(comfyui / "constraints.txt"), str(comfyui / ".venv")}


def test_node_install_takes_a_git_url_at_a_commit(
    run: Run, stubs: Path, comfyui: Path, tmp_path: Path
) -> None:
    """
    A pack by URL is what the named commit holds, not what came after it.
    """
    stub(stubs, "uv")
    source = tmp_path / "pack"
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b"]
    source.mkdir()
    subprocess.run([*git, "init", "--quiet"], check=True)
    for text in ("first", "second"):
        (source / "__init__.py").write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", text], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD~1"], capture_output=True, text=True, check=True
    ).stdout.strip()

    ran = run(BIN / "comfy-node-install", f"file://{source}@{commit}", COMFYUI_PATH=str(comfyui))

    assert ran.returncode == 0, ran.stderr
    assert (comfyui / "custom_nodes" / "pack" / "__init__.py").read_text() == "first"


def test_node_install_fails_when_packages_cannot_be_had(run: Run, stubs: Path, comfyui: Path) -> None:
    """
    A pack without its packages is no pack.
    """
    packs = comfyui / "custom_nodes"
    stub(stubs, "comfy", f'mkdir -p "{packs}/pack"; echo nonsense > "{packs}/pack/requirements.txt"')
    stub(stubs, "uv", "exit 1")

    assert run(BIN / "comfy-node-install", "pack", COMFYUI_PATH=str(comfyui)).returncode == 1


# start.sh, SSH, the interpreter


def start(run: Run, stubs: Path, *arguments: str, **environ: str) -> Ran:
    """
    Run start.sh with a worker that only notes its call.
    """
    for name in ("worker", "start-sshd", "comfy-manager-set-mode"):
        stub(stubs, name)
    return run(ROOT / "docker" / "start.sh", *arguments, WORKER_PYTHON="worker", **environ)


def test_start_becomes_the_worker(run: Run, stubs: Path) -> None:
    """
    The worker gets the arguments; SSH is left alone without a key; the Manager is offline.
    """
    ran = start(run, stubs, "--rp_log_level", "DEBUG")

    assert ran.returncode == 0, ran.stderr
    assert sorted(calls(stubs)) == [
        "comfy-manager-set-mode offline",
        "worker -u /handler.py --rp_log_level DEBUG",
    ]


def test_start_goes_on_when_ssh_fails(run: Run, stubs: Path) -> None:
    """
    A container whose SSH cannot start still takes jobs.
    """
    stub(stubs, "start-sshd", "exit 1")
    for name in ("worker", "comfy-manager-set-mode"):
        stub(stubs, name)

    ran = run(ROOT / "docker" / "start.sh", WORKER_PYTHON="worker", PUBLIC_KEY="ssh-ed25519 AAAA me")

    assert ran.returncode == 0
    assert "worker -u /handler.py" in calls(stubs)
    assert "start-sshd failed" in ran.stderr


def test_ssh_adds_keys_and_keeps_those_that_are_there(run: Run, stubs: Path, tmp_path: Path) -> None:
    """
    Each key stands once, in a file that only its owner reads, and passwords are off.
    """
    for name in ("ssh-keygen", "sshd", "install"):
        stub(stubs, name)
    keys = tmp_path / ".ssh" / "authorized_keys"
    keys.parent.mkdir()
    keys.write_text("ssh-rsa OLD a\n")

    for _ in range(2):
        ran = run(BIN / "start-sshd", PUBLIC_KEY="ssh-rsa OLD a\nssh-ed25519 NEW b\n")
        assert ran.returncode == 0, ran.stderr

    assert keys.read_text().splitlines() == ["ssh-rsa OLD a", "ssh-ed25519 NEW b"]
    assert keys.stat().st_mode & 0o777 == 0o600
    assert keys.parent.stat().st_mode & 0o777 == 0o700
    assert any("PasswordAuthentication=no" in call for call in calls(stubs))


def preloaded(run: Run, comfyui: Path, **environ: str) -> str:
    """
    Return the LD_PRELOAD that ComfyUI's Python is given.
    """
    python = comfyui / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text('#!/bin/bash\necho "<${LD_PRELOAD-unset}>"\n')
    python.chmod(0o755)
    return run(BIN / "comfyui-python", "main.py", COMFYUI_PATH=str(comfyui), **environ).stdout.strip()


def test_tcmalloc_is_preloaded_only_where_it_is(run: Run, stubs: Path, comfyui: Path) -> None:
    """
    The variable is set to a library that was found, and stays unset when there is none or it is not wanted.
    """
    stub(stubs, "ldconfig", "echo '  libc.so.6 (libc6,x86-64) => /lib/libc.so.6'")
    assert preloaded(run, comfyui, COMFYUI_TCMALLOC="true") == "<unset>"

    stub(stubs, "ldconfig", f"echo '  libtcmalloc_minimal.so.4 (libc6,x86-64) => {stubs}/libtc.so.4'")
    assert preloaded(run, comfyui, COMFYUI_TCMALLOC="true") == f"<{stubs}/libtc.so.4>"
    assert preloaded(run, comfyui) == "<unset>"


# build-on-pod.sh


@pytest.fixture
def server(stubs: Path) -> Path:
    """
    Return the stand-ins of a server with Docker and 900 GB free, and a repository that git can clone.
    """
    stub(stubs, "docker", 'case "$*" in *DockerRootDir*) echo / ;; login*) cat >> "$0.stdin" ;; esac')
    stub(stubs, "git", f'mkdir -p "${{@: -1}}/models"; cp {ROOT}/docker-bake.hcl "${{@: -1}}"; '
         f'cp {ROOT}/models/*.toml "${{@: -1}}/models"')  # fmt: skip
    stub(stubs, "df", 'printf "Filesystem 1024-blocks Used Available\\n/dev/x 0 0 ${FREE_KB:-900000000}\\n"')
    stub(stubs, "systemctl")
    stub(stubs, "curl", "exit 7")
    return stubs


def build(run: Run, **environ: str) -> Ran:
    """
    Run the build script with an account.
    """
    needed: Mapping[str, str] = {
        "DOCKERHUB_USERNAME": "me",
        "DOCKERHUB_TOKEN": "dckr_secret",
        "REPO_URL": "https://example.com/r.git",
        "PUSH_RETRY_S": "0",
    }
    return run(BUILD, **{**needed, **environ})


@pytest.mark.parametrize("name", ["DOCKERHUB_USERNAME", "DOCKERHUB_TOKEN"])
def test_build_says_which_variable_is_missing(run: Run, server: Path, name: str) -> None:
    """
    A missing variable is named before anything is called.
    """
    ran = build(run, **{name: ""})

    assert ran.returncode == 1
    assert f"Set {name}" in ran.stderr
    assert [call for call in calls(server) if not call.startswith("git -C")] == []


def test_build_bakes_and_pushes_the_row(run: Run, server: Path) -> None:
    """
    One target is built from the bake file under the wanted name, with the token nowhere but on login's input.
    """
    ran = build(run, MODEL_TYPE="sdxl", HUGGINGFACE_ACCESS_TOKEN="hf_secret")
    made = [call for call in calls(server) if "buildx bake" in call]

    assert ran.returncode == 0, ran.stderr
    assert "--set sdxl.tags=me/worker-comfyui:latest-sdxl sdxl" in made[0]
    assert made[-1].endswith("--push")
    assert "secret" not in "".join(calls(server)) + ran.stdout + ran.stderr
    assert (server / "docker.stdin").read_text().strip() == "dckr_secret"
    assert "Destroy this server" in ran.stdout


def test_build_lists_the_variants_for_an_unknown_one(run: Run, server: Path) -> None:
    """
    A name that is no row is wrong use, and the rows are named.
    """
    ran = build(run, MODEL_TYPE="sdxxl")

    assert ran.returncode == 64
    assert "hunyuan-instruct-nf4" in ran.stderr
    assert not any("bake" in call for call in calls(server))


def test_build_wants_a_token_for_gated_models(run: Run, server: Path) -> None:
    """
    A gated variant without a token fails before the build, with what to do.
    """
    ran = build(run, MODEL_TYPE="flux1-dev")

    assert ran.returncode == 64
    assert "HUGGINGFACE_ACCESS_TOKEN" in ran.stderr


def test_build_refuses_unknown_cuda(run: Run, server: Path) -> None:
    """
    A CUDA that there is no base image for is wrong use.
    """
    assert build(run, CUDA_LEVEL="11.8").returncode == 64


def test_build_looks_at_the_disk_first(run: Run, server: Path) -> None:
    """
    Too little room ends it with both numbers; a switch goes on all the same.
    """
    ran = build(run, FREE_KB="50000000")
    assert ran.returncode == 70
    assert "138 GB" in ran.stderr
    assert "51 GB" in ran.stderr
    assert build(run, FREE_KB="50000000", SKIP_DISK_CHECK="true").returncode == 0


def test_build_ends_without_a_docker_daemon(run: Run, server: Path) -> None:
    """
    A daemon that cannot be started is said in one line.
    """
    stub(server, "docker", '[[ "$1" != info ]]')
    stub(server, "sleep")

    ran = build(run)

    assert ran.returncode == 69
    assert "ERROR: Docker daemon is not running." in ran.stderr


def test_build_tries_the_push_again(run: Run, server: Path) -> None:
    """
    A push that fails is tried again three times, then the script says so and keeps what was built.
    """
    stub(server, "docker", 'case "$*" in *DockerRootDir*) echo / ;; *--push) exit 1 ;; esac')

    ran = build(run, MODEL_TYPE="sdxl")

    assert ran.returncode == 75
    assert len([call for call in calls(server) if call.endswith("--push")]) == 4


def test_build_leaves_no_credentials(run: Run, server: Path, tmp_path: Path) -> None:
    """
    The folder with Docker's credentials and the source is gone afterwards, after a failure too.
    """
    stub(server, "docker", f'case "$*" in *DockerRootDir*) echo / ;; login*) echo "$DOCKER_CONFIG" > "{server}/config"; '
         'touch "$DOCKER_CONFIG/config.json" ;; *bake*) exit 3 ;; esac')  # fmt: skip

    ran = build(run, MODEL_TYPE="sdxl")

    assert ran.returncode == 3
    assert "step 4/5 failed" in ran.stderr
    assert not Path((server / "config").read_text().strip()).exists()


def test_build_only_shows_what_it_would_do(run: Run, server: Path) -> None:
    """
    A dry run calls no docker that changes something, and shows the commands without secrets.
    """
    ran = build(run, DRY_RUN="true", MODEL_TYPE="sdxl", PRUNE="true")

    assert ran.returncode == 0, ran.stderr
    assert "+ docker buildx bake" in ran.stdout
    assert not any(
        call.startswith(("docker login", "docker buildx bake", "git clone", "docker system"))
        for call in calls(server)
    )
    assert "secret" not in ran.stdout


# try-image


@pytest.mark.parametrize(
    ("reply", "code", "expected"),
    [
        ('{"id":"1","status":"COMPLETED"}', "0", 0),
        ('{"id":"1","status":"FAILED"}', "0", 1),
        ('{"id":"1","status":"COMPLETED"}', "137", 1),
    ],
)
def test_try_image_wants_a_finished_job_and_a_clean_end(
    run: Run, stubs: Path, reply: str, code: str, expected: int
) -> None:
    """
    An image passes when its test job completes and the container ends with 0; the container is removed either way.
    """
    stub(
        stubs,
        "docker",
        f'case "$*" in run*) echo c1 ;; port*) echo 127.0.0.1:1 ;; *ExitCode*) echo {code} ;; *Running*) echo true ;; esac',
    )
    stub(stubs, "curl", f"echo '{reply}'")

    ran = run(ROOT / "scripts" / "try-image", "me/image:1", "--gpus", "all")

    assert ran.returncode == expected, ran.stderr
    assert (
        "docker run --detach --publish 127.0.0.1::8000 --env SERVE_API_LOCALLY=true --gpus all me/image:1"
        in calls(stubs)
    )
    assert calls(stubs)[-1] == "docker rm --force c1"
