# SPDX-License-Identifier: Apache-2.0
"""A trained voice behind a web address; needs `pip install -e '.[tts]' fastapi uvicorn`.

python examples/serve.py

Settings come from the environment: RUN (a run's folder), VOCODER (a HiFi-GAN, or empty), DEVICE
(auto, which takes a GPU if there is one, cpu or cuda:N) and PORT. Then
`curl -G localhost:8000/speak --data-urlencode "text=Good morning." -o out.wav`.
"""

import io
import os
import threading

import soundfile
from fastapi import FastAPI, HTTPException, Response

from sniper.synthesize import load_speaker
from sniper.tts.errors import SpeechError

app = FastAPI()
speaker = load_speaker(
    os.getenv("RUN", "runs/demo"),
    device=os.getenv("DEVICE", "auto"),
    vocoder=os.getenv("VOCODER") or None,
)
one_at_a_time = threading.Lock()  # a sentence uses all cores


@app.get("/speak")
def speak(text: str, voice: str | None = None, speed: float = 1.0, pitch: float = 0.0) -> Response:
    try:
        with one_at_a_time:
            speech = speaker.speak(text, speaker=voice, speed=speed, pitch=pitch)
    except SpeechError as error:  # one line that says what is wrong with the request
        raise HTTPException(422, str(error)) from None
    wav = io.BytesIO()
    soundfile.write(wav, speech.audio, speaker.info.features.sample_rate, format="WAV")
    return Response(wav.getvalue(), media_type="audio/wav")


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
