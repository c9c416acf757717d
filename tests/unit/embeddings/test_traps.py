"""A trap of the published code that concerns encoding (METHOD.md, section 2)."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.encode import encode
from llmkt_ray.embeddings.targets import make_targets
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.table import one_row_per_user
from llmkt_ray.study import EmbeddingConfig, ProfileConfig, ReductionConfig


def test_trap_18_users_without_a_profile_stop_nobody_and_every_user_ends_in_a_row(data: PreparedData, store: ArtifactStore) -> None:
    """The published script stops after the first user and skips those with an error: here the first and the last one fail."""
    profiles = generate(ProfileConfig(llm="template"), data, store, study_seed=1)
    failed = [0, 11, data.n_users - 1]
    texts = [None if i in failed else text for i, text in enumerate(profiles.table.column("profile").to_pylist())]
    errors = ["refused" if i in failed else None for i in range(data.n_users)]
    table = profiles.table
    for name, values in (("profile", texts), ("error", errors)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    assert one_row_per_user(table, data.user_tokens).num_rows == data.n_users
    manifest = store.manifest("profiles", profiles.key)
    store.save("profiles", "partial", inputs=manifest.inputs, tables={"profiles": table}, notes=manifest.notes)
    embeddings = encode(EmbeddingConfig(encoder="tfidf_svd", dims=16), replace(profiles, key="partial", table=table), store)
    others = np.delete(data.user_tokens, failed)
    assert embeddings.user_ids.tolist() == others.tolist()
    assert len(np.unique(embeddings.vectors, axis=0)) > 1
    targets = make_targets(
        embeddings_key=embeddings.key, data=data, reduction=ReductionConfig(method="pca"), dims=4, study_seed=1, store=store
    )
    assert targets.user_tokens.tolist() == data.user_tokens.tolist()
    assert np.flatnonzero(~targets.present).tolist() == failed
    assert not targets.matrix[failed].any()
    assert np.abs(targets.matrix[targets.present]).sum(axis=1).min() > 0
