"""GET /migrations: the sets there are, and what is in each. Read from the syntax tree; nothing is run."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.documents import ListedSet, SetList
from app.openapi import answers
from app.sets import MigrationSets
from migrate_ckpt import MigrationSet

router = APIRouter(prefix="/migrations")


@router.get("", responses=answers(SetList, "The sets."), summary="List the sets of migrations")
async def list_sets(request: Request) -> SetList:
    sets: MigrationSets = request.app.state.sets
    return {"sets": [_describe(migration_set) for migration_set in sets.current.sets.values()]}


@router.get(
    "/{name}", responses=answers(ListedSet, "The set."), summary="List one set of migrations"
)
async def show_set(request: Request, name: str) -> ListedSet:
    sets: MigrationSets = request.app.state.sets
    return _describe(sets.current.find(name))


def _describe(migration_set: MigrationSet) -> ListedSet:
    return {
        "set": migration_set.name,
        "set_digest": migration_set.digest,
        "migrations": [
            {
                "position": position,
                "name": migration.name,
                "title": migration.title,
                "digest": migration.digest,
                "declared": migration.is_declared,
            }
            for position, migration in enumerate(migration_set.files, start=1)
        ],
    }
