"""
Repositories for DiffusersLoader: what a URL names is in its folder, or the request says why not.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.git_server import GitServer, commit
from support.pictures import empty_workflow, node
from support.salad_fixtures import ServeSalad

from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobCancelled
from comfy_worker.faces import salad_graph
from comfy_worker.faces.salad_graph import Surroundings
from comfy_worker.fetch_guard import Guard
from comfy_worker.job import UrlAuth
from comfy_worker.models.repositories import Repositories, parsed


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    """
    A git server with one repository, `own/model`.
    """
    commit(tmp_path / "git" / "own" / "model", {"model_index.json": "one"})
    with GitServer(tmp_path / "git") as running:
        yield running


@pytest.fixture
def repositories(tmp_path: Path) -> Repositories:
    """
    Repositories in an empty folder, from loopback too.
    """
    return Repositories(tmp_path / "diffusers", Guard(allow_private=True), http=True)


def read(tmp_path: Path, name: str) -> str:
    """
    Return what the model's file holds.
    """
    return (tmp_path / "diffusers" / name / "model_index.json").read_text()


@pytest.mark.parametrize(
    ("url", "base", "ref"),
    [
        ("https://h/a/b", "https://h/a/b", None),
        ("https://h/a/b.git@v1", "https://h/a/b.git", "v1"),
        ("https://h/g/s/b/-/tree/dev", "https://h/g/s/b", "dev"),
        ("https://h/g/b/-/commit/abc123", "https://h/g/b", "abc123"),
        ("https://h/a/b/tree/dev", "https://h/a/b", "dev"),
        ("https://h/a/b/commit/abc123", "https://h/a/b", "abc123"),
        ("https://h/a/b/releases/tag/v1.0", "https://h/a/b", "v1.0"),
        ("https://h/a/b/src/dev/some/path", "https://h/a/b", "dev"),
        ("https://h/a/b/commits/abc123", "https://h/a/b", "abc123"),
        ("https://user@h/a/b", "https://user@h/a/b", None),
    ],
)
def test_references_are_those_of_the_peer(url: str, base: str, ref: str | None) -> None:
    """Every host's way to name a branch, a tag or a commit is read."""
    assert parsed(url) == (base, ref)


@pytest.mark.slow
def test_salad_s51_pinned_reference_is_what_is_there(
    repositories: Repositories, server: GitServer, tmp_path: Path
) -> None:
    """Tag, branch, commit and a part of its hash each give their own state, whatever was cloned before."""
    folder = server.root / "own" / "model"
    first = commit(folder, {"model_index.json": "tagged"}, "tag", "v1")
    commit(folder, {"model_index.json": "newest"}, "branch", "dev")
    url = f"{server.url}/own/model"

    names = {
        ref: repositories.obtain(f"{url}{ref}", Deadline(30))
        for ref in ("", "@v1", "/tree/dev", f"/commit/{first}", f"@{first[:8]}")
    }

    assert {ref: read(tmp_path, name) for ref, name in names.items()} == {
        "": "newest",
        "@v1": "tagged",
        "/tree/dev": "newest",
        f"/commit/{first}": "tagged",
        f"@{first[:8]}": "tagged",
    }
    assert all(name.startswith("model-") for name in names.values())
    seen = len(server.seen)
    assert repositories.obtain(f"{url}/commit/{first}", Deadline(30)) == names[f"/commit/{first}"]
    assert len(server.seen) == seen  # a commit never changes


@pytest.mark.slow
@pytest.mark.parametrize("ref", ["gone", "a" * 40, "abc1234"])
def test_salad_s51_reference_that_is_not_there_fails(
    ref: str, repositories: Repositories, server: GitServer, tmp_path: Path
) -> None:
    """What cannot be checked out is an error, and leaves nothing."""
    with pytest.raises(InputUnavailable, match="no such branch, tag or commit"):
        repositories.obtain(f"{server.url}/own/model@{ref}", Deadline(30))

    assert list((tmp_path / "diffusers").iterdir()) == []


def test_salad_s51_pinned_branch_that_went_away_fails(repositories: Repositories, server: GitServer) -> None:
    """An existing clone is not passed off for a reference that can no longer be checked out."""
    folder = server.root / "own" / "model"
    commit(folder, {}, "branch", "dev")
    url = f"{server.url}/own/model@dev"
    repositories.obtain(url, Deadline(30))
    commit(folder, {}, "branch", "-D", "dev")

    with pytest.raises(InputUnavailable, match="no such branch"):
        repositories.obtain(url, Deadline(30))


def test_clone_without_a_reference_is_brought_up_to_date(
    repositories: Repositories, server: GitServer, tmp_path: Path
) -> None:
    """The newest state is used; when the server is away, the copy is."""
    url = f"{server.url}/own/model.git"
    commit(server.root / "own" / "model.git", {"model_index.json": "one"})
    name = repositories.obtain(url, Deadline(30))
    commit(server.root / "own" / "model.git", {"model_index.json": "two"})

    assert repositories.obtain(url, Deadline(30)) == name
    assert read(tmp_path, name) == "two"
    server.redirect = "http://127.0.0.1:9"
    assert repositories.obtain(url, Deadline(30)) == name


@pytest.mark.slow
def test_git_goes_nowhere_else(repositories: Repositories, server: GitServer, tmp_path: Path) -> None:
    """Private addresses, http where it is not allowed, other protocols, redirects and options are refused."""
    url = f"{server.url}/own/model"
    closed = Repositories(tmp_path / "closed", Guard(), http=True)
    secure = Repositories(tmp_path / "secure", Guard(allow_private=True))

    for store, given in (
        (closed, url),
        (secure, url),
        (repositories, f"ssh://127.0.0.1{tmp_path}"),
        (repositories, f"file://{server.root}/own/model"),
        (repositories, "https://user:password@127.0.0.1/a/b"),
        (repositories, f"{url}?x=1"),
        (repositories, f"{url}@--upload-pack=touch"),
    ):
        with pytest.raises(InputUnavailable):
            store.obtain(given, Deadline(30))
    assert server.seen == []
    with GitServer(server.root) as other:
        server.redirect = other.url
        with pytest.raises(InputUnavailable):
            repositories.obtain(url, Deadline(30))
        assert other.seen == []


@pytest.mark.slow
def test_links_and_large_files_of_a_repository(
    repositories: Repositories, server: GitServer, tmp_path: Path
) -> None:
    """A link out of the repository becomes a text, and files that lie in Git LFS are no model."""
    folder = server.root / "own" / "linked"
    folder.mkdir()
    (folder / "secret").symlink_to("/etc/passwd")
    commit(folder, {"model_index.json": "x"})
    name = repositories.obtain(f"{server.url}/own/linked", Deadline(30))
    commit(
        server.root / "own" / "large", {"m.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}
    )

    assert not (tmp_path / "diffusers" / name / "secret").is_symlink()
    with pytest.raises(InputUnavailable, match="Git LFS"):
        repositories.obtain(f"{server.url}/own/large", Deadline(30))


def test_cancelled_clone_ends(repositories: Repositories, server: GitServer, tmp_path: Path) -> None:
    """A job that is stopped leaves no half of a repository."""
    deadline = Deadline(30)
    deadline.cancel()
    (server.root / "own" / "model").rename(server.root / "own" / "slow")

    with pytest.raises((JobCancelled, InputUnavailable)):
        repositories.obtain(f"{server.url}/own/model", deadline)

    assert list((tmp_path / "diffusers").iterdir()) == []


@pytest.mark.slow
def test_diffusers_loader_gets_the_name_of_the_folder(
    serve_salad: ServeSalad, server: GitServer, tmp_path: Path
) -> None:
    """A request with a repository is carried out with its folder; one that cannot be had is a 400 that names the node."""
    served = serve_salad()
    graph = empty_workflow(51)

    for name, status in (("own/model", 400), ("own/none", 400)):
        prompt = {**graph, "50": node("DiffusersLoader", model_path=f"{server.url}/{name}")}
        reply = served.post("/prompt", {"prompt": prompt})
        assert reply.status_code == status, reply.text
        if name == "own/none":
            assert reply.json()["error"].startswith("Failed to process model for node 50: ")
            assert reply.json()["location"] == "prompt.50.inputs"
    assert [path.name[:6] for path in (tmp_path / "models" / "diffusers").iterdir()] == ["model-"]


def test_credentials_are_not_shown_to_git() -> None:
    """What a request shows to a host does not open a repository for everybody."""
    prompt = {
        "1": node("DiffusersLoader", model_path="https://example.com/a/b"),
        "2": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }
    around = Surroundings(lambda _: {}, lambda url: (url, UrlAuth()), "k")

    [file] = salad_graph.read(prompt, "id", around).inputs

    assert (file.folder, file.is_repository, file.auth) == ("diffusers", True, None)
