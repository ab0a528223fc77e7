#!/bin/sh
# the arguments are SeaweedFS's
export RCLONE_AUTH_KEY="\"$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY\""
exec rclone serve s3 --config /dev/null --addr 0.0.0.0:8333 /data
