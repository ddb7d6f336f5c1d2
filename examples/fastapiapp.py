"""A FastAPI application: `pyfanout run fastapiapp:app`."""

import os

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def root():
    return {"process": os.getpid()}
