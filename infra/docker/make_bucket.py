"""Makes a bucket unless it is there: `make_bucket.py NAME`. Its server and keys are in AWS_*."""

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

# A server that has just begun answers before it can make buckets: asked for about a minute.
PATIENT = Config(retries={"mode": "standard", "total_max_attempts": 9})


def main(name: str) -> None:
    client = boto3.client("s3", config=PATIENT)
    try:
        client.create_bucket(Bucket=name)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code != "BucketAlreadyOwnedByYou":
            sys.exit(f"bucket {name}: {code}")
    except BotoCoreError as error:
        sys.exit(f"bucket {name}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
