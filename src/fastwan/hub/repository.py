"""A repository of the hub at one commit.

Which commit a branch stands for is asked of the hub, and of its cache where the hub cannot answer;
a commit given in full is not asked about. Only files that are needed are fetched, and all that was
fetched is held against the sizes and hashes that the hub gives before it is used. A branch is noted
in the cache after all of them are there, so an interrupted download of a new commit leaves the one
before it usable.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

from fastwan.errors import BadInput, EnvironmentLacks, FastWanError, FastWanWarning, listed
from fastwan.files import sha256_file
from fastwan.hub.cache import COMMIT, CachedRepository, HubFile, hub_cache, hub_file, safe
from fastwan.hub.download import download, sweep
from fastwan.hub.errors import Offline, endpoint, explain
from fastwan.hub.ids import HubId, parse_id
from fastwan.install import how_to_install
from fastwan.parallel import in_order, workers

_TIMEOUT_SECONDS = 10.0


class Repository:
    """A repository of the hub at one commit; make one with `open_repository`.

    Args:
        files: None where they are not known.
        asked: whether the hub was asked.
        failure: why it did not answer.

    Attributes:
        id: what was asked for.
        commit: that it stands for, as a full hash.
        files: all files of the repository at that commit, by name; those that were fetched before,
            where neither the hub nor its cache has the list.
        whole: whether `files` are all.
    """

    def __init__(
        self,
        hub_id: HubId,
        cached: CachedRepository,
        commit: str,
        files: dict[str, HubFile] | None,
        *,
        asked: bool = True,
        failure: FastWanError | None = None,
    ) -> None:
        self.id = hub_id
        self.commit = commit
        self.whole = files is not None
        self.files = cached.fetched(commit) if files is None else files
        self._cached = cached
        self._asked = asked
        self._failure = failure

    @property
    def folder(self) -> Path:
        """Where the files of this commit lie."""
        return self._cached.snapshot(self.commit)

    def get(
        self, names: Iterable[str], *, helpful: Collection[str] = (), proven: bool = True
    ) -> Path:
        """Fetch files that are not there yet; returns `folder`.

        Args:
            names: of `files`.
            helpful: fetched with them, and done without where the hub cannot be asked.
            proven: hash large files that were there already, not only those that arrive now.

        Raises:
            BadInput: the hub gives no access to them.
            EnvironmentLacks: one was never fetched, and the hub cannot be reached; a download
                failed, or arrived damaged twice; the cache cannot be written.
        """
        needed = sorted({*names, *helpful})
        lacking = [name for name in needed if not self._has(name)]
        if lacking and self._hub_answers():
            self._download(lacking)
        elif lacking:
            self._refuse([name for name in lacking if name not in helpful], "never fetched")
            needed = [name for name in needed if name not in lacking]
        damaged = self._damaged(needed, hashed=needed if proven else lacking)
        if damaged and self._hub_answers():
            self._download(damaged, again=True)
            if damaged := self._damaged(damaged, hashed=damaged):
                self._throw_away(damaged)
        elif damaged:
            self._refuse(damaged, "damaged in the hub's cache")
        return self.folder

    def keep(self) -> None:
        """Note in the cache that `id` stands for `commit`; say so where only the cache told."""
        if self._failure is None:
            self._cached.remember(self.id.revision, self.commit)
        elif not isinstance(self._failure, Offline):
            note = f"{self._failure.what}: {self.id} is taken from its cache, commit {self.commit}"
            warnings.warn(note, FastWanWarning, stacklevel=2)

    @property
    def _where(self) -> str:
        return f"{self.id.repo} at {self.commit[:12]}"

    def _hub_answers(self) -> bool:
        if not self._asked:
            self._asked = True
            try:
                _ask(self.id)
            except Exception as error:  # network libraries fail in many classes
                self._failure = explain(error, self._where)
        return self._failure is None

    def _has(self, name: str) -> bool:
        return os.path.isfile(self.folder / name)

    def _damaged(self, names: Collection[str], hashed: Collection[str]) -> list[str]:
        """Those of `names` with another size than the hub says, or `hashed` and of other content.

        What the hub keeps no hash of is small, and its reader notices.
        """

        def is_whole(name: str) -> bool:
            told = self.files.get(name, HubFile())
            digest = told.sha256 or self._cached.blob_sha256(self.commit, name)
            path = self.folder / name
            try:
                return told.size in (None, path.stat().st_size) and (
                    digest is None or name not in hashed or sha256_file(path) == digest
                )
            except OSError:
                return False

        checked = in_order(is_whole, list(names), workers())
        return [name for name, whole in checked if not whole]

    def _download(self, names: list[str], *, again: bool = False) -> None:
        try:
            sweep(self._cached.folder)
            download(self.id.repo, self.commit, names, again=again)
        except Exception as error:  # network libraries and disks fail in many classes
            raise explain(error, self._where, downloading=True) from None
        if absent := [name for name in names if not self._has(name)]:
            raise EnvironmentLacks(
                f"the download ended without {listed(absent)}", where=self._where, fix="try again"
            )

    def _throw_away(self, damaged: list[str]) -> None:
        """Leave no damaged file to a later run, which may not be able to tell."""
        for name in damaged:
            (self.folder / name).unlink(missing_ok=True)
        raise EnvironmentLacks(
            f"{listed(damaged)} arrived with other content than {endpoint()} announces, twice",
            where=self._where,
            fix="try again; a proxy or mirror in between may be at fault",
        )

    def _refuse(self, names: list[str], state: str) -> None:
        """Refuse to go on with the cache alone, unless `names` is empty."""
        if not names or self._failure is None:
            return
        complete = [
            commit
            for commit in self._cached.commits()
            if commit != self.commit
            and all(os.path.isfile(self._cached.snapshot(commit) / name) for name in names)
        ]
        fix = f"{self._failure.fix or 'try again later'}"
        if complete:
            fix += f", or give the revision {complete[0]}, of which the cache has them"
        what = f"{self._failure.what}, and of the files needed {listed(names)} "
        what += f"{'was' if len(names) == 1 else 'were'} {state}"
        raise type(self._failure)(what, where=self._where, fix=fix)


def open_repository(
    source: str, revision: str | None = None, *, local_files_only: bool = False
) -> Repository:
    """Open a repository of the hub at the commit that `revision` stands for.

    Args:
        source: ``owner/name`` or ``owner/name@revision``.
        revision: see `parse_id`.
        local_files_only: take what was fetched before, without asking the hub.

    Raises:
        BadInput: no such repository or revision, or no access to it, and none in the cache.
        EnvironmentLacks: the hub cannot be reached and the cache does not hold the repository.
    """
    hub_id = parse_id(source, revision)
    try:
        cached = CachedRepository(hub_cache(), hub_id.repo)
    except (ImportError, ValueError) as error:  # of the library's variables
        raise EnvironmentLacks(
            f"huggingface_hub cannot be used: {error}",
            fix=f"check the variables that begin with HF_; {how_to_install()}",
        ) from None
    if local_files_only:
        asked_not = Offline("local_files_only is set", where=str(hub_id), fix="leave it out")
        return _from_cache(hub_id, cached, asked_not)
    if hub_id.revision is not None and COMMIT.fullmatch(hub_id.revision):
        known = cached.listing(hub_id.revision)
        if known is not None:
            return Repository(hub_id, cached, hub_id.revision, known, asked=False)
    try:
        commit, files = _ask(hub_id)
    except Exception as error:  # network libraries fail in many classes
        failure = explain(error, str(hub_id))
        return _from_cache(hub_id, cached, failure)
    return Repository(hub_id, cached, commit, files)


def _ask(hub_id: HubId) -> tuple[str, dict[str, HubFile]]:
    """Commit and files of a repository by the hub itself."""
    import huggingface_hub

    # Not list_repo_tree, which retries for half a minute where there is no network.
    info = huggingface_hub.HfApi().model_info(
        hub_id.repo, revision=hub_id.revision, timeout=_TIMEOUT_SECONDS, files_metadata=True
    )
    if not COMMIT.fullmatch(info.sha or ""):
        raise ValueError("the answer names no commit")
    files = {
        each.rfilename: hub_file(each.size, None if each.lfs is None else each.lfs.sha256)
        for each in info.siblings or ()
    }
    return str(info.sha), safe(files)


def _from_cache(hub_id: HubId, cached: CachedRepository, failure: FastWanError) -> Repository:
    commit = cached.commit(hub_id.revision)
    if commit is not None and cached.snapshot(commit).is_dir():
        return Repository(hub_id, cached, commit, cached.listing(commit), failure=failure)
    if isinstance(failure, BadInput):
        raise failure
    held = cached.commits()
    what = f"{failure.what}, and its cache holds no copy of this model"
    if held:
        what = f"{failure.what}, and its cache holds only {listed(held)} of this model"
    raise type(failure)(what, where=failure.where, fix=f"{failure.fix}, or give a local folder")
