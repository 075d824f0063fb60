package guides

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// loadedAt is since when what runs runs, of a gatehouse that is ready.
func loadedAt(client *http.Client) (time.Time, error) {
	resp, err := client.Get("http://127.0.0.1:9180/status.json")
	if err != nil {
		return time.Time{}, err
	}
	defer resp.Body.Close()
	var s struct {
		Ready    bool     `json:"ready"`
		NotReady []string `json:"notReady"`
		Config   struct {
			LoadedAt time.Time `json:"loadedAt"`
		} `json:"config"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return time.Time{}, err
	}
	if !s.Ready {
		return s.Config.LoadedAt, errors.New("it is not ready")
	}
	return s.Config.LoadedAt, nil
}
