"""`python -m prefkit` is the command `prefkit`, for launchers such as `accelerate launch -m`."""

from prefkit.cli import app

if __name__ == "__main__":
    app(prog_name="prefkit")
