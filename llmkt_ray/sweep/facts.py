"""What a study's card says of its cells and artifacts: read from the manifests of what has been made."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from llmkt_ray.artifacts import MANIFEST, ArtifactStore
from llmkt_ray.sweep.pipeline import EmbeddingNode, ItemMeanNode, ItemTextsNode, ProfileNode, SplitNode, TargetNode, TextsNode
from llmkt_ray.sweep.plan import Plan

NodeT = TypeVar("NodeT", SplitNode, ProfileNode, ItemTextsNode, EmbeddingNode | ItemMeanNode, TargetNode)


def card_facts(plan: Plan, store: ArtifactStore) -> dict[str, Any]:
    """Returns what the card says about the study's cells and about those of its artifacts that have been made."""

    def made(nodes: Sequence[NodeT]) -> Iterator[tuple[NodeT, dict[str, Any]]]:
        for node in nodes:
            if store.files.exists(f"{node.kind}/{node.key}/{MANIFEST}"):
                manifest = store.manifest(node.kind, node.key)
                yield node, {**manifest.notes, "wall_s": manifest.wall_s}

    def source(node: TextsNode | EmbeddingNode | ItemMeanNode) -> dict[str, Any]:
        return {"dataset": node.split.config.name, "split_key": node.split.key, "llm": node.source}

    datasets = [
        {
            "name": node.config.name,
            "split_key": node.key,
            "repetition": node.repetition,
            "train_share": node.train_share,
            "n_users": notes.get("n_users"),
            "n_items": notes.get("n_items"),
            "notes": notes,
        }
        for node, notes in made(plan.splits)
    ]
    profiles = [
        {**source(node), "key": node.key, "is_llm": notes.get("is_llm"), "certificate": notes.get("certificate"), "notes": notes}
        for node, notes in made(plan.profiles)
    ]
    items = [node for node in plan.artifacts if isinstance(node, ItemTextsNode)]
    item_texts = [{**source(node), "key": node.key, "notes": notes} for node, notes in made(items)]
    embeddings = [
        {**source(node), "encoder": node.config.label, "key": node.key, "identity": node.identity, "notes": notes}
        for node, notes in made(plan.embeddings)
    ]
    targets = [
        {
            **source(node.embedding),
            "encoder": node.embedding.config.label,
            "reduction": node.config.label,
            "dims": node.dims,
            "key": node.key,
            "notes": notes,
        }
        for node, notes in made(plan.targets)
    ]
    return {
        "datasets": datasets,
        "profiles": profiles,
        "item_texts": item_texts,
        "embeddings": embeddings,
        "targets": targets,
        "cells": [cell.facts() for cell in plan.cells],
        "planned_trials": len(plan.trials) + plan.searched_trials,
    }
