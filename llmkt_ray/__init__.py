"""LLM-KT sweeps on Ray: does LLM knowledge about users make a recommender better, and with which settings?"""

__version__ = "0.1.0"
