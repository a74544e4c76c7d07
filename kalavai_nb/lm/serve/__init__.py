"""The OpenAI chat and completions API in front of a model: what agents and apps speak.

server.py is what the notebook holds, app.py the endpoints, served.py what they need of a model. A body is read into an
`Asked` (fields.py, asked.py, messages.py), becomes `Answers` (answers.py), is told in the words of one of the two APIs
(telling.py, words.py), and goes out at once or as events (replies.py). Whatever goes wrong is a `Fault` (faults.py).
"""
