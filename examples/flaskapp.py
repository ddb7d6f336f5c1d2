"""A Flask application: `pyfanout run flaskapp:app`."""

import os

from flask import Flask

app = Flask(__name__)


@app.get("/")
def root():
    return {"process": os.getpid()}
