# In the place of SeaweedFS where no registry can be reached: rclone's S3 server with the keys that the service gives.
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
COPY --chmod=0755 rclone /usr/local/bin/rclone
COPY --chmod=0755 s3.sh /entrypoint.sh
VOLUME /data
