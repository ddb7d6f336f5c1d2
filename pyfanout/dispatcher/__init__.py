"""Workers that another program forks. `owner` is what the program has, `joining` how a worker comes in, `joined` the
process that passes connections to them.
"""
