"""The retrieval server: any retriever behind Search-R1's ``POST /retrieve``.

``search-gym serve`` starts it; `search_gym.server.app.make_app` is its ASGI application.
"""
