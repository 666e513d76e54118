"""The steps by which the store's schema became what it is: text, not the tables of `store`. Those say how the schema is
today, a migration says for ever what one step of it was."""

from __future__ import annotations

MIGRATIONS: list[tuple[str, ...]] = [
    (
        "CREATE TABLE versions (id VARCHAR(64) NOT NULL PRIMARY KEY, "
        "name VARCHAR(128) NOT NULL, version INTEGER NOT NULL, "
        "run TEXT NOT NULL, base_model TEXT NOT NULL, base_revision TEXT NOT NULL, dataset_hash VARCHAR(64) NOT NULL, "
        "method VARCHAR(64) NOT NULL, created VARCHAR(32) NOT NULL, metrics TEXT NOT NULL, files TEXT NOT NULL, "
        "CONSTRAINT versions_name_version UNIQUE (name, version))",
        "CREATE TABLE aliases (name VARCHAR(128) NOT NULL, alias VARCHAR(128) NOT NULL, version INTEGER NOT NULL, "
        "PRIMARY KEY (name, alias), FOREIGN KEY (name, version) REFERENCES versions (name, version))",
    ),
    (
        "CREATE TABLE rated_pairs (study TEXT NOT NULL, pair VARCHAR(64) NOT NULL, context TEXT NOT NULL, "
        "prompt TEXT NOT NULL, model_first TEXT NOT NULL, model_second TEXT NOT NULL, answer_first TEXT NOT NULL, "
        "answer_second TEXT NOT NULL, gold VARCHAR(16) NOT NULL, PRIMARY KEY (study, pair))",
        "CREATE TABLE ratings (study TEXT NOT NULL, pair VARCHAR(64) NOT NULL, rater VARCHAR(64) NOT NULL, "
        "kind VARCHAR(16) NOT NULL, model_a TEXT NOT NULL, model_b TEXT NOT NULL, choice VARCHAR(16) NOT NULL, "
        "relevance_a INTEGER, fluency_a INTEGER, informativeness_a INTEGER, "
        "relevance_b INTEGER, fluency_b INTEGER, informativeness_b INTEGER, "
        "safety_a VARCHAR(8), safety_b VARCHAR(8), safety_reason_a TEXT NOT NULL, safety_reason_b TEXT NOT NULL, "
        "rated VARCHAR(32) NOT NULL, PRIMARY KEY (study, pair, rater, kind), "
        "FOREIGN KEY (study, pair) REFERENCES rated_pairs (study, pair))",
    ),
    (
        "CREATE TABLE api_keys (id VARCHAR(16) NOT NULL PRIMARY KEY, name VARCHAR(64) NOT NULL, "
        "digest VARCHAR(64) NOT NULL, scopes TEXT NOT NULL, created VARCHAR(32) NOT NULL, "
        "expires VARCHAR(32) NOT NULL, revoked VARCHAR(32) NOT NULL, "
        "requests INTEGER, tokens INTEGER, streams INTEGER)",
    ),
    (
        "CREATE TABLE replies (id VARCHAR(96) NOT NULL, prompt INTEGER NOT NULL, created INTEGER NOT NULL, "
        "tenant TEXT NOT NULL, key_id TEXT NOT NULL, user_hash VARCHAR(64) NOT NULL, model TEXT NOT NULL, "
        "version TEXT NOT NULL, arm TEXT NOT NULL, purpose VARCHAR(16) NOT NULL, question TEXT NOT NULL, "
        "answers TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL, "
        "PRIMARY KEY (id, prompt))",
        "CREATE INDEX replies_user ON replies (user_hash)",
        "CREATE TABLE feedback (tenant TEXT NOT NULL, reply VARCHAR(96) NOT NULL, choice INTEGER NOT NULL, "
        "user_hash VARCHAR(64) NOT NULL, created INTEGER NOT NULL, key_id TEXT NOT NULL, thumb VARCHAR(8) NOT NULL, "
        "score FLOAT, correction TEXT NOT NULL, PRIMARY KEY (tenant, reply, choice, user_hash))",
        "CREATE INDEX feedback_user ON feedback (user_hash)",
        "CREATE TABLE files (id VARCHAR(64) NOT NULL PRIMARY KEY, created INTEGER NOT NULL, tenant TEXT NOT NULL, "
        "key_id TEXT NOT NULL, user_hash VARCHAR(64) NOT NULL, filename TEXT NOT NULL, purpose VARCHAR(32) NOT NULL, "
        "size BIGINT NOT NULL)",
        "CREATE TABLE file_lines (file VARCHAR(64) NOT NULL, number INTEGER NOT NULL, user_hash VARCHAR(64) NOT NULL, "
        "content TEXT NOT NULL, PRIMARY KEY (file, number))",
        "CREATE INDEX file_lines_user ON file_lines (user_hash)",
        "CREATE TABLE batches (id VARCHAR(64) NOT NULL PRIMARY KEY, created INTEGER NOT NULL, tenant TEXT NOT NULL, "
        "user_hash VARCHAR(64) NOT NULL, caller TEXT NOT NULL, endpoint VARCHAR(64) NOT NULL, "
        "status VARCHAR(16) NOT NULL, input_file VARCHAR(64) NOT NULL, output_file VARCHAR(64) NOT NULL, "
        "error_file VARCHAR(64) NOT NULL, notes TEXT NOT NULL, errors TEXT NOT NULL, times TEXT NOT NULL, "
        "expires INTEGER NOT NULL, total INTEGER NOT NULL, completed INTEGER NOT NULL, failed INTEGER NOT NULL, "
        "owner VARCHAR(64) NOT NULL, lease FLOAT NOT NULL)",
        "CREATE TABLE forgotten (user_hash VARCHAR(64) NOT NULL, tenant TEXT NOT NULL, at FLOAT NOT NULL, "
        "PRIMARY KEY (user_hash, tenant))",
    ),
]
