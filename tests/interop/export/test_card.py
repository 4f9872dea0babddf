"""The model card, and an upload to a hub that runs here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from limbeck.errors import LimbeckError
from limbeck.interop.export import PIPELINES, Facts, Plan, license_of, push, write_card

PLAN = Plan(PIPELINES["StableDiffusionPipeline"], "LCMScheduler", {}, {"guidance_scale": 1.0, "num_inference_steps": 4})
FIGURES = {"task": "diffusers", "teacher": {"nfe": 35, "frechet": 1.25}, "student": {"nfe": 4, "frechet": 1.5}}
TOKEN = "hf_a-token-that-must-not-be-written"


def facts(**more):
    known = {"name": "me/student", "method": "dmd", "title": "DMD", "arxiv": "2311.18828", "steps": 4, "asked": "text"}
    return Facts(**{**known, "base": "teachers/one", "license": "apache-2.0", "figures": FIGURES, **more})


def front(folder: Path):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_card_says_what_it_is_and_how_to_sample_it(tmp_path):
    write_card(tmp_path, PLAN, facts())
    said = front(tmp_path)
    assert said["license"] == "apache-2.0" and said["base_model"] == "teachers/one" and said["pipeline_tag"] == "text-to-image"
    assert {"limbeck", "distillation", "dmd"} <= set(said["tags"])
    text = (tmp_path / "README.md").read_text()
    assert 'StableDiffusionPipeline.from_pretrained("me/student")' in text
    assert 'pipe(prompt="a photo of a cat", guidance_scale=1.0, num_inference_steps=4, generator=torch.manual_seed(0))' in text
    assert "| student | 4 | 1.500 |" in text and "| teacher | 35 | 1.250 |" in text
    assert license_of(tmp_path) == "apache-2.0"


def test_a_card_without_license_or_figures(tmp_path):
    write_card(tmp_path, PLAN, facts(license=None, figures={}, asked=""))
    assert "license" not in front(tmp_path) and license_of(tmp_path) is None
    assert "not finished: there are no figures yet" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("no front matter")
    assert license_of(tmp_path) is None and license_of(tmp_path / "nowhere") is None


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            if self.server.refuses:
                return self.answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
            return self.answer({"url": f"http://{self.headers['Host']}/me/student"})
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            self.server.committed = [json.loads(line) for line in body.splitlines()]
            return self.answer({"commitUrl": f"http://{self.headers['Host']}/me/student/commit/1", "commitOid": "1" * 40})
        return self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            return self.answer({"error": "Repository not found"}, 404)
        return self.answer({"id": "me/student", "sha": "0" * 40, "private": True, "tags": [], "siblings": []})

    def answer(self, found, status=200):
        text = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import HfApi, constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.created, server.committed, server.refuses = [], None, [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=address))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "student" / "unet").mkdir(parents=True)
    (tmp_path / "student" / "unet" / "config.json").write_text("{}")
    (tmp_path / "student" / "README.md").write_text("a card")
    return tmp_path / "student"


@pytest.mark.parametrize("private", [True, False])
def test_an_upload_creates_the_repository_and_commits_every_file(hub, folder, private, capsys, caplog):
    assert push(folder, "me/student", private).endswith("/me/student")
    assert hub.created["name"] == "student" and hub.created["organization"] == "me"
    assert hub.created.get("private") is private or hub.created.get("visibility") == ("private" if private else "public")
    files = {line["value"]["path"] for line in hub.committed if line["key"] == "file"}
    assert files == {"README.md", "unet/config.json"}
    assert not [path for path, said in hub.asked if said != f"Bearer {TOKEN}" and "validate" not in path]
    written = "".join(p.read_text() for p in folder.rglob("*") if p.is_file())
    told = capsys.readouterr()
    assert TOKEN not in written + told.out + told.err + caplog.text


def test_what_the_hub_refuses_is_said_and_the_folder_stays(hub, folder):
    hub.refuses = True
    with pytest.raises(LimbeckError, match="the hub refused me/student: .*rights to create.*may write.*is written"):
        push(folder, "me/student")
    assert (folder / "README.md").is_file()


def test_names_that_are_none_and_missing_logins(hub, folder, monkeypatch):
    with pytest.raises(LimbeckError, match="'me/one/student' is no name of a repository, USER/NAME"):
        push(folder, "me/one/student")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(LimbeckError, match="without a login; set HF_TOKEN, or run `hf auth login`"):
        push(folder, "me/student")
