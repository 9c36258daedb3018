"""A secret in all the forms in which texts hold one, to be looked for."""

import base64

CANARY = "Canary8Secret"
FORMS = (
    CANARY,
    base64.b64encode(CANARY.encode()).decode().rstrip("="),
    base64.b64encode(f"user:{CANARY}".encode()).decode().rstrip("="),
)
URIS = (
    f"http://user:{CANARY}@host:5000",
    f"http://user:{CANARY}@127.0.0.1:9/",
    f"HTTPS://user:{CANARY}@host/x?a=b",
    f"https://{CANARY}@host/x",
    f"https://{CANARY}:@host/x",
    f"https://{CANARY}:x-oauth-basic@github.com/x",
    f"http://user:4{CANARY}@host",
    f"http://user:a@{CANARY}@host",
    f"http://user:a/{CANARY}@host",
    f"http://user:a'{CANARY}@host",
    f"http://user:%40{CANARY}@host",
    f"s3://KEY:{CANARY}@bucket/runs",
    f"s3://{CANARY}:SECRET@bucket/runs",
    f"s3://KEY:a/b+{CANARY}@bucket/runs",
    f"s3:/KEY:{CANARY}@bucket/runs",
    f"gs://{CANARY}@bucket/runs",
    f"abfss://container:{CANARY}@account/x",
    f"postgresql://user:{CANARY}@host/db",
    f"postgresql+psycopg2://user:{CANARY}@host/db",
    f"//user:{CANARY}@host/x",
    f"user:{CANARY}@host:5000",
    f"s3://bucket/runs?secret_key={CANARY}",
    f"s3://bucket/runs?region=x&access_key={CANARY}",
    f"s3://bucket/runs?endpoint_override=http%3A%2F%2Fuser%3A{CANARY}%40host",
    f"s3://bucket/runs?endpoint_override=http%253A%252F%252Fuser%253A{CANARY}%2540host",
    f"https://host/x?password={CANARY}",
    f"https://host/x?token={CANARY}&y=1",
    f"https://host/x?sv=1&sig={CANARY}",
    f"https://host/x?X-Amz-Signature={CANARY}",
    f"https://host/x?X-Amz-Security-Token={CANARY}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{CANARY}",
)
SAID = (
    f"--token {CANARY} --seed 3",
    f"--db-password={CANARY}",
    f"HF_TOKEN={CANARY} raysae",
    f"AWS_SECRET_ACCESS_KEY='{CANARY} x'",
    f"AccountKey={CANARY};EndpointSuffix=x",
    f"{{'Authorization': 'Basic {CANARY}', 'a': 1}}",
    f'{{"password": "{CANARY} and more", "a": 1}}',
    f"Authorization: Bearer {CANARY}",
    f"curl -H 'authorization: {CANARY}'",
    "login with hf_" + CANARY + "a" * 30,
)


def hidden(text):
    return not any(form in text for form in FORMS) and CANARY[2:] not in text
