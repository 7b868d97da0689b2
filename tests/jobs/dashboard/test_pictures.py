"""Pictures: only files that a record names within the job's folder, and only what is a picture."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from jobs.dashboard.cache import BoundedCache
from jobs.dashboard.thumbnails import SIDE
from jobs.errors import StoreError
from jobs.folder.layout import JobKeys
from jobs.folder.records import dump_lines
from tests.jobs.dashboard.world import picture

KEYS = JobKeys("job")


def put_record(world, index=0, **values):
    record = {"index": index, "path": f"images/{index:06d}.png", **values}
    world.store.put(KEYS.records(0), dump_lines([record]), overwrite=True)


class TestPicture:
    def test_as_it_is_stored(self, world):
        world.enter()
        world.store_images(0, 9)
        answer = world.client.get("/jobs/job/picture/9")
        assert answer.content == picture()
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")

    def test_the_type_is_by_what_it_is(self, world):
        world.enter()
        world.store_images(0)
        for format, kind in (("JPEG", "image/jpeg"), ("WEBP", "image/webp")):
            data = picture(format=format)
            world.store.put(KEYS("images/000000.png"), data, overwrite=True)
            answer = world.client.get("/jobs/job/picture/0")
            assert (answer.content, answer.headers["content-type"]) == (data, kind)

    @pytest.mark.parametrize("data", [b"<script>alert(1)</script>", b"", b"<svg/>", b"GIF89a"])
    def test_what_is_no_picture_is_not_served(self, world, data):
        world.enter()
        world.store_images(0)
        world.store.put(KEYS("images/000000.png"), data, overwrite=True)
        for kind in ("picture", "thumbnail"):
            answer = world.client.get(f"/jobs/job/{kind}/0")
            assert answer.status_code == 502
            assert answer.headers["content-type"] == "application/json"
            assert data not in answer.content or not data

    @pytest.mark.parametrize(
        "path", ["manifest.yaml", "images/../secret.png", "/etc/passwd", "images//x.png", "", 7]
    )
    def test_other_files_of_the_store_are_not(self, world, path):
        world.enter()
        world.store.put("job/manifest.yaml", picture())
        world.store.put("job/secret.png", picture())
        put_record(world, path=path)
        assert world.client.get("/jobs/job/picture/0").status_code == 404

    def test_what_is_not_there(self, world):
        world.enter()
        world.store_images(0)
        assert "not there yet" in world.get("/jobs/job/picture/1", 404)["error"]
        assert "no image 10" in world.get("/jobs/job/picture/10", 404)["error"]
        assert "no such job" in world.get("/jobs/none/picture/0", 404)["error"]
        for odd in ("x", "-1", "1.5", "0/x"):
            assert world.client.get(f"/jobs/job/picture/{odd}").status_code == 404

    def test_one_that_lands_later_is_found(self, world):
        world.enter()
        world.store_images(0)
        world.client.get("/jobs/job/picture/0")
        world.store_images(1)  # of the same file of records
        assert world.client.get("/jobs/job/picture/1").status_code == 200

    def test_a_browser_that_has_it_gets_it_no_second_time(self, world, monkeypatch):
        world.enter()
        world.store_images(0)
        tag = world.client.get("/jobs/job/picture/0").headers["etag"]
        again = world.client.get("/jobs/job/picture/0", headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")

    def test_a_store_that_is_away_is_said(self, world, monkeypatch):
        world.enter()

        def away(*_, **__):
            raise StoreError("s3://bucket: nobody answers")

        monkeypatch.setattr(world.store, "get", away)
        assert world.get("/jobs/job/picture/0", 502)["error"] == "s3://bucket: nobody answers"
        assert world.get("/api/jobs")["total"] == 1

    def test_a_job_entered_again_elsewhere_is_another_one(self, world):
        world.enter()
        world.store_images(0)
        world.client.get("/jobs/job/picture/0")
        world.ledger.forget("job")
        world.enter()
        world.store.delete(KEYS.records(0))
        assert world.client.get("/jobs/job/picture/0").status_code == 404


class TestThumbnail:
    def small(self, world, index=0):
        answer = world.client.get(f"/jobs/job/thumbnail/{index}")
        assert answer.status_code == 200, answer.text
        return answer

    def test_one_is_made_where_none_is_stored(self, world):
        world.enter()
        world.store_images(0)
        answer = self.small(world)
        assert answer.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert (image.format, image.size) == ("WEBP", (SIDE, SIDE * 3 // 4))

    def test_it_is_made_once(self, world, monkeypatch):
        world.enter()
        world.store_images(0)
        first = self.small(world)
        world.store.delete(KEYS("images/000000.png"))
        assert self.small(world).content == first.content

    def test_the_stored_one(self, world):
        world.enter()
        data = picture("blue", "WEBP", (64, 48))
        world.store.put(KEYS("thumbs/000000.webp"), data)
        world.store_images(0, thumbnail="thumbs/000000.webp")
        assert self.small(world).content == data

    def test_one_that_is_not_there(self, world):
        world.enter()
        world.store_images(0, thumbnail="thumbs/none.webp")
        with Image.open(io.BytesIO(self.small(world).content)) as image:
            assert image.size == (SIDE, SIDE * 3 // 4)

    @pytest.mark.parametrize(
        "path", ["thumbs/../secret.webp", "secret.webp", "thumbs/", "images/000000.png", 7, None]
    )
    def test_a_record_that_names_another_place_is_none(self, world, path):
        world.enter()
        world.store.put(KEYS("secret.webp"), picture("blue", "WEBP", (64, 48)))
        world.store_images(0, thumbnail=path)
        assert world.client.get("/jobs/job/thumbnail/0").status_code == 404

    def test_a_stored_one_that_is_no_picture(self, world):
        world.enter()
        world.store.put(KEYS("thumbs/000000.webp"), b"<script>")
        world.store_images(0, thumbnail="thumbs/000000.webp")
        assert self.small(world).content.startswith(b"RIFF")


class TestCache:
    def test_the_longest_unused_goes_first(self):
        cache: BoundedCache[str, bytes] = BoundedCache(10, len)
        for key in "abc":
            cache.put(key, b"1234" if key != "c" else b"12")
        assert cache.get("a") == b"1234"
        cache.put("d", b"1234")
        assert [cache.get(key) for key in "abcd"] == [b"1234", None, b"12", b"1234"]

    def test_what_is_larger_than_all_of_it_is_not_kept(self):
        cache: BoundedCache[str, bytes] = BoundedCache(10, len)
        cache.put("a", b"12345678901")
        assert cache.get("a") is None
        cache.put("b", b"1234567890")
        assert cache.get("b") is not None
        cache.put("b", b"12")
        cache.put("c", b"12345678")
        assert cache.get("b") == b"12"
