import numpy as np

from llmkt_ray.data.prepared import Rows
from llmkt_ray.embeddings.item_mean import user_means


def test_a_user_is_the_mean_of_the_liked_items_with_a_text():
    user = np.array([0, 0, 0, 1, 1, 3], dtype=np.int32)
    item = np.array([0, 1, 2, 1, 3, 3], dtype=np.int32)
    positive = np.array([True, True, False, False, False, True])
    rows = Rows(user, item, np.ones(6, np.float32), np.full(6, np.nan), positive)
    vectors = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 9.0], [5.0, 5.0]])
    known = np.array([True, True, True, False])
    means, users = user_means(vectors, known, rows, 4)
    assert users.tolist() == [0, 1], "user 2 has no history, user 3 no item with a text"
    np.testing.assert_allclose(means, [[2.0, 0.0], [3.0, 0.0]], err_msg="user 1 likes nothing: all of the history")
